//! Tests by mutation: valid small files of every kind, changed at random, are read or refused, and nothing else:
//! no panic, no hang, no memory without end.
//!
//! `INTERLOCK_MUTATIONS` sets the number of mutations of each kind. A file that fails stays in the folder that the message names; so does the last one
//! if the process is ended for its memory.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use interlock::Key;
use rand::{Rng, RngExt};

use crate::{
    bench::cpu,
    memory,
    readers::{READERS, Reader},
};

/// The mutations of each kind, without `INTERLOCK_MUTATIONS`.
const COUNT: u64 = 150;
/// The longest time for one file.
const LONGEST: Duration = Duration::from_secs(10);
/// The most memory for one file, in MiB.
const MOST: f64 = 1024.0;
/// Numbers at the ends of their types, as text.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "65536",
    "2147483648",
    "4294967296",
    "1000000000000",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "1e308",
    "-1e308",
    "1e999",
    "nan",
];
/// The same as integers.
const INTEGERS: [u64; 9] = [0, 1, u64::MAX, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 63, (1 << 63) - 1, 1_000_000_000_000];
/// What may be repeated many times.
const REPEATED: [&[u8]; 8] = [b"[", b"{\"a\":", b"a.", b"(", b"\0", b"[[a]]\n", b"\xff", b"\"a\","];

fn range(random: &mut impl Rng, len: usize) -> std::ops::Range<usize> {
    let start = random.random_range(0..=len);
    start..random.random_range(start..=len.min(start + 1 + len / 4))
}

/// Changes `bytes` in one way.
fn mutate(bytes: &mut Vec<u8>, random: &mut impl Rng) {
    let at = random.random_range(0..=bytes.len());
    let part = range(random, bytes.len());
    match random.random_range(0..9) {
        0 => (0..random.random_range(1..9)).for_each(|_| {
            let at = random.random_range(0..bytes.len().max(1));
            bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << random.random_range(0..8));
        }),
        1 => bytes.truncate(at),
        2 => drop(bytes.drain(part)),
        3 => drop(bytes.splice(at..at, (0..random.random_range(1..65)).map(|_| random.random()).collect::<Vec<u8>>())),
        4 => bytes[part].fill(0),
        5 => {
            let copy = bytes[part].to_vec();
            bytes.splice(at..at, copy);
        }
        6 => {
            let piece = REPEATED[random.random_range(0..REPEATED.len())];
            bytes.splice(at..at, piece.repeat(random.random_range(1..20_000)));
        }
        7 => {
            let number = INTEGERS[random.random_range(0..INTEGERS.len())];
            let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
            let width = [1, 2, 4, 8][random.random_range(0..4)];
            let number = if random.random() { &little[..width] } else { &big[8 - width..] };
            bytes.iter_mut().skip(at).zip(number).for_each(|(byte, new)| *byte = *new);
        }
        _ => {
            let is_number = |&at: &usize| bytes[at].is_ascii_digit() && (at == 0 || !bytes[at - 1].is_ascii_digit());
            let starts: Vec<usize> = (0..bytes.len()).filter(is_number).collect();
            if let Some(&start) = starts.get(random.random_range(0..starts.len().max(1))) {
                let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'.').count();
                bytes.splice(start..start + digits, NUMBERS[random.random_range(0..NUMBERS.len())].bytes());
            }
        }
    }
}

/// Returns mutation `number` of a file of this kind.
fn mutated(reader: &Reader, seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut random = Key::new(0).named(reader.name).with(number).stream();
    let mut bytes = seeds[random.random_range(0..seeds.len())].clone();
    (0..random.random_range(1..4)).for_each(|_| mutate(&mut bytes, &mut random));
    bytes
}

/// Reads one file. Returns whether it was refused, and otherwise what is wrong.
fn check(reader: &Reader, folder: &Path, bytes: &[u8]) -> Result<bool, String> {
    // The peak counts from here.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let before = memory::resident();
    let start = cpu::seconds();
    let outcome = catch_unwind(AssertUnwindSafe(|| reader.read(folder, bytes)));
    // Of CPU time, since the machine may be busy.
    let seconds = cpu::seconds().zip(start).map_or(Duration::ZERO, |(end, start)| Duration::from_secs_f64(end - start));
    let peak = memory::peak();
    match outcome {
        Err(_) => Err("it panicked".to_owned()),
        Ok(_) if seconds > LONGEST => Err(format!("it took {seconds:?}")),
        Ok(outcome) => match peak.zip(before).map(|(peak, before)| peak - before).filter(|taken| *taken > MOST) {
            Some(taken) => Err(format!("it took {taken:.0} MiB")),
            None => Ok(outcome.is_err()),
        },
    }
}

/// Reads `count` mutations of a kind. Returns how many were refused.
fn read_all(reader: &'static Reader, folder: PathBuf, count: u64) -> Result<u64, String> {
    let seeds = (reader.seeds)();
    for seed in &seeds {
        let outcome = reader.read(&folder, seed).map_err(|e| e.to_string());
        outcome.map_err(|e| format!("{}: a valid file is refused: {e}", reader.name))?;
    }
    let (sender, results) = channel();
    let own = folder.clone();
    thread::spawn(move || {
        for number in 0..count {
            if sender.send(check(reader, &own, &mutated(reader, &seeds, number))).is_err() {
                return;
            }
        }
    });
    let mut refused = 0;
    for number in 0..count {
        let failed = |why: &str| {
            let last = file_of(reader, number);
            fs::write(&last, mutated(reader, &(reader.seeds)(), number)).expect("writes");
            Err(format!("{}, mutation {number}: {why}; see {}", reader.name, last.display()))
        };
        match results.recv_timeout(12 * LONGEST) {
            Ok(Ok(is_refused)) => refused += u64::from(is_refused),
            Ok(Err(why)) => return failed(&why),
            Err(RecvTimeoutError::Timeout) => return failed("it does not end"),
            Err(RecvTimeoutError::Disconnected) => return failed("its thread has ended"),
        }
    }
    Ok(refused)
}

fn file_of(reader: &Reader, number: u64) -> PathBuf {
    std::env::temp_dir().join(format!("interlock-{}-{number}", reader.name))
}

#[test]
fn mutated_files_are_read_or_refused_in_bounded_time_and_memory() {
    let count = std::env::var("INTERLOCK_MUTATIONS").map_or(COUNT, |count| count.parse().expect("a number"));
    let only = std::env::var("INTERLOCK_MUTATIONS_OF").unwrap_or_default();
    let mut failures = Vec::new();
    for reader in READERS.iter().filter(|reader| only.is_empty() || only.split(',').any(|name| name == reader.name)) {
        let (folder, start) = (tempfile::tempdir().expect("a folder"), Instant::now());
        match read_all(reader, folder.path().to_owned(), count) {
            Ok(refused) => {
                println!("{:<16} {count} mutations, {refused} refused, {:?}", reader.name, start.elapsed());
                assert!(refused > 0, "{}: none is refused", reader.name);
            }
            Err(failure) => failures.push(failure),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Returns where the numbers of a text are.
fn numbers(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut found: Vec<std::ops::Range<usize>> = Vec::new();
    for at in (0..bytes.len()).filter(|&at| bytes[at].is_ascii_digit()) {
        match found.last_mut() {
            Some(last) if last.end == at => last.end = at + 1,
            // A part of a word or of a fraction stays.
            _ if at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'.') => {}
            _ => found.push(at..at + 1),
        }
    }
    found
}

#[test]
fn the_largest_numbers_are_read_or_refused_in_every_place() {
    /// The most places of a file that are tried.
    const PLACES: usize = 60;
    for name in
        ["config", "run_config", "run_data", "run_status", "run_events", "run_timeline", "costs", "index", "case"]
    {
        let (reader, folder) = (Reader::named(name).expect(name), tempfile::tempdir().expect("a folder"));
        for seed in (reader.seeds)() {
            let places = numbers(&seed);
            let thinned = places.iter().step_by(places.len().div_ceil(PLACES).max(1));
            for number in ["18446744073709551615", "9223372036854775807", "4294967295"] {
                let replaced = |places: &[std::ops::Range<usize>]| {
                    let mut bytes = seed.clone();
                    places.iter().rev().for_each(|place| drop(bytes.splice(place.clone(), number.bytes())));
                    bytes
                };
                let one_by_one = thinned.clone().map(|place| replaced(std::slice::from_ref(place)));
                for bytes in one_by_one.chain([replaced(&places)]) {
                    if let Err(why) = check(reader, folder.path(), &bytes) {
                        panic!("{name}, {number}: {why}\n{}", String::from_utf8_lossy(&bytes));
                    }
                }
            }
        }
    }
}

/// The memory is what matters here, so this stands beside the other tests that measure it.
#[cfg(feature = "images")]
#[test]
fn exif_data_of_webp_that_reach_beyond_the_file_take_no_memory() {
    let (reader, folder) = (Reader::named("webp").expect("webp"), tempfile::tempdir().expect("a folder"));
    let seeds = (reader.seeds)();
    let name = |seed: &&Vec<u8>| seed.windows(4).any(|part| part == b"EXIF");
    let mut file = seeds.iter().find(name).expect("a file with EXIF data").clone();
    let at = file.windows(4).position(|part| part == b"EXIF").expect("EXIF") + 4;
    file[at..at + 4].copy_from_slice(&3_000_000_000_u32.to_le_bytes());
    assert_eq!(check(reader, folder.path(), &file), Ok(false));
}
