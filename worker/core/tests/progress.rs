//! Progress as real tools print it, fed in pieces of any size.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use qctl_worker_core::progress::{Pattern, Reading, Source, Tracker};
use qctl_worker_core::segment::Stream;

const PYTEST: &[(&str, &[u8])] = &[
    ("plain", include_bytes!("fixtures/pytest_plain.txt")),
    ("tty", include_bytes!("fixtures/pytest_tty.txt")),
    ("xdist", include_bytes!("fixtures/pytest_xdist.txt")),
    (
        "xdist_verbose",
        include_bytes!("fixtures/pytest_xdist_verbose.txt"),
    ),
];
const PYTEST_SELECTED: &[u8] = include_bytes!("fixtures/pytest_verbose.txt");
const PYTEST_QUIET: &[u8] = include_bytes!("fixtures/pytest_quiet.txt");
const TQDM: &[u8] = include_bytes!("fixtures/tqdm_bars.txt");
const TQDM_BYTES: &[u8] = include_bytes!("fixtures/tqdm_bytesbar.txt");
const TQDM_NESTED: &[u8] = include_bytes!("fixtures/tqdm_nested.txt");

/// Every reading, for output that arrives in pieces of `size` bytes, one every 10 ms.
fn readings(data: &[u8], size: usize) -> Vec<Reading> {
    let mut tracker = Tracker::new(None);
    let mut seen: Vec<Reading> = Vec::new();
    for (index, piece) in data.chunks(size).enumerate() {
        let at = Duration::from_millis(10 * index as u64);
        tracker.output(Stream::Stdout, piece, at);
        if let Some(reading) = tracker.latest()
            && seen.last() != Some(reading)
        {
            seen.push(reading.clone());
        }
    }
    seen
}

#[test]
fn pytest_is_counted_to_its_last_test() {
    for (name, data) in PYTEST {
        for size in [1, 7, 100, 100_000] {
            let seen = readings(data, size);
            let last = seen.last().unwrap();
            assert_eq!(last.source, Source::Pytest, "{name}");
            assert_eq!((last.done, last.total), (101.0, 101.0), "{name} in {size}");
            assert_eq!(last.unit, "tests");
            assert!(
                seen.windows(2).all(|pair| pair[0].done <= pair[1].done),
                "{name}"
            );
        }
    }
}

#[test]
fn pytest_counts_each_test_as_it_ends() {
    let seen = readings(PYTEST[0].1, 1);
    let counts: Vec<_> = seen.iter().map(|reading| reading.done as u64).collect();
    assert!((0..=101).all(|count| counts.contains(&count)), "{counts:?}");
}

#[test]
fn deselected_tests_do_not_count() {
    let seen = readings(PYTEST_SELECTED, 100);
    let last = seen.last().unwrap();
    assert_eq!((last.done, last.total), (82.0, 82.0));
}

#[test]
fn quiet_pytest_tells_a_percentage() {
    let last = readings(PYTEST_QUIET, 50).pop().unwrap();
    assert_eq!((last.percent, last.unit.as_str()), (Some(100.0), "%"));
}

#[test]
fn tqdm_tells_count_rate_and_unit() {
    for size in [1, 13, 100_000] {
        let last = readings(TQDM, size).pop().unwrap();
        assert_eq!(last.source, Source::Tqdm);
        assert_eq!(
            (last.done, last.total, last.unit.as_str()),
            (30.0, 30.0, "img")
        );
        assert!(last.rate.is_some_and(|rate| rate > 1.0));
    }
}

#[test]
fn tqdm_counts_bytes_and_bars_without_total() {
    let seen = readings(TQDM_BYTES, 1);
    assert!(
        seen.iter()
            .any(|r| r.done == 2.5e6 && r.total == 5e6 && r.unit == "B")
    );
    let last = seen.last().unwrap();
    assert_eq!((last.done, last.total, last.percent), (10.0, 0.0, None));
}

#[test]
fn the_outer_of_two_bars_is_followed() {
    for size in [1, 5, 64, 100_000] {
        let seen = readings(TQDM_NESTED, size);
        assert!(seen.iter().all(|reading| reading.total == 3.0), "in {size}");
        assert_eq!(seen.last().unwrap().done, 3.0);
    }
}

#[test]
fn what_is_trusted_more_wins_and_a_finished_bar_lets_go() {
    let mut tracker = Tracker::new(Some(
        Pattern::parse(r"at (?<done>\d+) of (?<total>\d+)").unwrap(),
    ));
    let second = Duration::from_secs(1);
    tracker.output(Stream::Stdout, b"[1/4]\n", second);
    assert_eq!(tracker.latest().unwrap().source, Source::Counter);
    tracker.output(Stream::Stdout, b"at 3 of 8\n[2/4]\n", second);
    assert_eq!(tracker.latest().unwrap().total, 8.0);
    tracker.report(b"5/10 files", second);
    tracker.output(Stream::Stderr, b"\x1b]9;4;1;99\x07", second);
    assert_eq!(tracker.latest().unwrap().unit, "files");

    tracker.report(b"10/10 files", second);
    tracker.output(Stream::Stdout, b"at 4 of 8\n", 2 * second);
    assert_eq!(tracker.latest().unwrap().source, Source::Report);
    tracker.output(Stream::Stdout, b"at 5 of 8\n", 20 * second);
    assert_eq!(tracker.latest().unwrap().source, Source::Pattern);
}

#[test]
fn a_cleared_terminal_progress_ends() {
    let mut tracker = Tracker::new(None);
    tracker.output(Stream::Stdout, b"\x1b]9;4;1;50\x07", Duration::ZERO);
    tracker.output(Stream::Stdout, b"\x1b]9;4;0\x07", Duration::ZERO);
    assert_eq!(tracker.latest(), None);
    tracker.output(Stream::Stdout, b"[1/4]\n", Duration::ZERO);
    assert_eq!(tracker.latest().unwrap().source, Source::Counter);
}

#[test]
fn at_most_ten_readings_a_second_are_taken_and_the_last_is_not_lost() {
    let mut tracker = Tracker::new(None);
    let mut taken = 0;
    for millisecond in 0..1000 {
        let now = Duration::from_millis(millisecond);
        tracker.report(format!("{millisecond}/1000").as_bytes(), now);
        taken += usize::from(tracker.due(now).is_some());
    }
    assert_eq!(taken, 10);
    assert_eq!(tracker.flush().unwrap().done, 999.0);
    assert_eq!(tracker.flush(), None);
    assert_eq!(tracker.wait(Duration::from_secs(9)), None);
}

#[test]
fn rate_and_remaining_time_are_estimated() {
    let mut tracker = Tracker::new(None);
    for second in 0..10 {
        let line = format!("[{}/100]\n", 2 * second);
        tracker.output(Stream::Stdout, line.as_bytes(), Duration::from_secs(second));
    }
    let reading = tracker.latest().unwrap();
    assert!((reading.rate.unwrap() - 2.0).abs() < 0.01);
    assert!((reading.eta.unwrap().as_secs_f64() - 41.0).abs() < 0.5);
}

/// Output that would be expensive for a careless parser. The bound is far above what a debug build
/// needs and far below anything quadratic.
#[test]
fn floods_cost_little() {
    let floods: [Vec<u8>; 4] = [
        vec![b'x'; 256 * 1024],
        b"y\n".repeat(128 * 1024),
        b"\x1b]9;4;".repeat(43_690),
        b"[1/[1/[1/".repeat(29_000),
    ];
    for flood in &floods {
        let started = Instant::now();
        let mut tracker = Tracker::new(None);
        for _ in 0..100 {
            tracker.output(Stream::Stdout, flood, Duration::ZERO);
        }
        let seconds = started.elapsed().as_secs_f64();
        assert!(
            seconds < 20.0,
            "{} took {seconds} s",
            String::from_utf8_lossy(&flood[..6])
        );
    }
}

proptest! {
    #[test]
    fn no_output_makes_it_panic(
        pieces in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..60),
                "[0-9%|/\\[\\]<:, .a-z\r\n\u{1b}]{0,40}".prop_map(String::into_bytes),
            ],
            0..40,
        ),
    ) {
        let mut tracker = Tracker::new(Some(Pattern::parse("(?<done>.*)").unwrap()));
        for (index, piece) in pieces.iter().enumerate() {
            tracker.output(Stream::Stdout, piece, Duration::from_secs(index as u64));
            tracker.report(piece, Duration::from_secs(index as u64));
            if let Some(reading) = tracker.latest() {
                prop_assert!(reading.done.is_finite() && reading.total.is_finite());
                prop_assert!(reading.percent.is_none_or(|p| (0.0..=100.0).contains(&p)));
            }
        }
    }
}
