//! Clients that a server of metrics has to bear, for the tests of this crate.
#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

/// The time after which Prometheus gives a scrape up.
pub const SCRAPE: Duration = Duration::from_secs(10);

/// Sends bytes, and returns what comes back until the connection is closed.
pub fn ask(address: &str, request: &[u8]) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(2 * SCRAPE))?;
    stream.set_write_timeout(Some(2 * SCRAPE))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

pub fn get(address: &str, path: &str) -> io::Result<String> {
    ask(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())
}

/// Scrapes as Prometheus does. Returns the metrics and the time that they took.
pub fn scrape(address: &str) -> (String, Duration) {
    let begun = Instant::now();
    let answer = get(address, "/metrics").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    (body.to_owned(), begun.elapsed())
}

/// Opens connections that send nothing. Some may be refused or closed already.
pub fn idle(address: &str, count: usize) -> Vec<TcpStream> {
    (0..count).filter_map(|_| TcpStream::connect(address).ok()).collect()
}

/// The kinds of bad requests.
pub const KINDS: usize = 9;

/// Makes a bad request of the kind `number % KINDS`, and waits until the server closes the connection or has had its answer.
pub fn bad_request(address: &str, number: usize) {
    // Whether the server answers or not: it must stay.
    let _ = match number % KINDS {
        0 => ask(address, &garbage(number)),
        1 => endless_headers(address),
        2 => ask(address, format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(70_000)).as_bytes()),
        3 => half(address, b"GET /metri"),
        4 => ask(address, &b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100)),
        5 => ask(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        6 => ask(address, b"POST /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\nxxx"),
        7 => ask(address, b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\nHost: \x00\x1b[2J\r\n\r\n"),
        _ => half(address, &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]),
    };
}

/// Returns bytes that look random.
fn garbage(number: usize) -> Vec<u8> {
    let next = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some((*state >> 56) as u8)
    };
    let mut bytes: Vec<u8> = std::iter::repeat(()).scan(number as u64, |state, ()| next(state)).take(600).collect();
    bytes.extend(b"\r\n\r\n");
    bytes
}

fn endless_headers(address: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_write_timeout(Some(2 * SCRAPE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\n")?;
    for n in 0..200_000 {
        stream.write_all(format!("x-{n}: {}\r\n", "y".repeat(100)).as_bytes())?;
    }
    panic!("20 MB of headers were taken");
}

fn half(address: &str, bytes: &[u8]) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Both)?;
    Ok(String::new())
}

/// Sends a request byte by byte. Returns the time until the server has closed the connection.
pub fn slow_bytes(address: &str) -> Duration {
    let begun = Instant::now();
    let Ok(mut stream) = TcpStream::connect(address) else { return Duration::ZERO };
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nx: ".iter().copied().chain(std::iter::repeat(b'y'));
    for byte in request {
        let closed = stream.write_all(&[byte]).is_err() || stream.read(&mut [0]).is_ok();
        if closed || begun.elapsed() > 3 * SCRAPE {
            break;
        }
    }
    begun.elapsed()
}

/// Asks for the metrics, and reads none of them. Returns the connection.
pub fn asks_and_never_reads(address: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
    Ok(stream)
}
