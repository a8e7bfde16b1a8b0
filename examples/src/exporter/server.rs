//! Answers requests for metrics, on a thread of its own.
//!
//! A connection gets one answer and is closed: Prometheus then opens another for its next scrape, and a client that says nothing holds its
//! connection for no longer than [`DEADLINE`].

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use interlock::{Error, Result};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::{Builder, Runtime},
    time,
};

use super::connections::{Connections, most};

/// The connections that the system holds until they are accepted.
const BACKLOG: u32 = 1024;
/// The most time for a request to arrive.
const REQUEST: Duration = Duration::from_secs(5);
/// The most time for a request and its answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// The most bytes of a request.
const REQUEST_BYTES: usize = 16 << 10;
/// The time until the next try after the system has refused a connection, for example since no descriptor is free.
const BACK_OFF: Duration = Duration::from_secs(1);
/// The time between two readings of the process's metrics from the operating system.
const PROCESS_EVERY: Duration = Duration::from_secs(1);
/// The time after which recorded values are gathered although nobody asks, so that they do not pile up.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The text format of Prometheus.
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A server that has its address, but does not answer yet.
pub(super) struct Server {
    runtime: Runtime,
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// # Errors
    /// If the address is not available.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // On Windows the option would let another process take the address.
        #[cfg(not(windows))]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        drop(inside);
        Ok(Self { runtime, listener, address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from now on.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(super) fn start(self, recorder: PrometheusHandle, process: metrics_process::Collector) -> Result<()> {
        let Self { runtime, listener, .. } = self;
        let serve = move || {
            runtime.block_on(async {
                let upkeep = recorder.clone();
                tokio::spawn(repeat(UPKEEP_EVERY, move || upkeep.run_upkeep()));
                tokio::spawn(repeat(PROCESS_EVERY, move || process.collect()));
                accept(listener, recorder).await
            })
        };
        let thread = thread::Builder::new().name("metrics".to_owned());
        thread.spawn(serve).map(drop).map_err(|cause| Error::Thread { name: "metrics", cause })
    }
}

async fn repeat(every: Duration, act: impl Fn()) {
    loop {
        time::sleep(every).await;
        act();
    }
}

/// Accepts connections until the process ends. Whatever clients do, it logs two lines at most.
async fn accept(listener: TcpListener, recorder: PrometheusHandle) -> Infallible {
    let most = most();
    let mut connections = Connections::new(most);
    let (mut told_full, mut told_refused) = (false, false);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let closed = connections.make_room().await;
                if closed && !std::mem::replace(&mut told_full, true) {
                    tracing::warn!(
                        "--metrics: all {most} connections are taken; from now on the one that waits longest without a request is closed for a new one"
                    );
                }
                let asked = Arc::new(AtomicBool::new(false));
                connections.add(tokio::spawn(answer(stream, recorder.clone(), Arc::clone(&asked))), asked);
            }
            // The client has gone.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
            }
            Err(error) => {
                if !std::mem::replace(&mut told_refused, true) {
                    tracing::warn!("--metrics: cannot accept connections, and tries again every second: {error}");
                }
                time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// Answers one request. Sets `asked` when it has arrived. A client that breaks the protocol or is slow is not worth a line in the log.
async fn answer(stream: TcpStream, recorder: PrometheusHandle, asked: Arc<AtomicBool>) {
    let service = service_fn(|request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let response = respond(&request, &recorder);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .max_buf_size(REQUEST_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let _ = time::timeout(DEADLINE, connection).await;
}

fn respond(request: &Request<Incoming>, recorder: &PrometheusHandle) -> Response<Full<Bytes>> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, content_type, text) = match request.uri().path() {
        _ if !reads => (StatusCode::METHOD_NOT_ALLOWED, TEXT, "use GET\n".to_owned()),
        "/" | "/metrics" => (StatusCode::OK, METRICS, recorder.render()),
        "/health" => (StatusCode::OK, TEXT, "OK".to_owned()),
        _ => (StatusCode::NOT_FOUND, TEXT, "the metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    if !reads {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
