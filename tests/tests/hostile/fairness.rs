//! What one tenant at its limit costs another.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rssh_lab::Lab;
use rssh_lab::process::Process;
use rssh_proto::{SessionId, TunnelId};
use serde_json::json;

use crate::administration::administered;
use crate::broker::Peer;
use crate::{PROMPTLY, lab, lab_alone, open, said, within};

/// How many opens are measured alone, and as many beside the flood, by turns.
const PAIRS: usize = 30;
/// How many requests a second the greedy one sends: more than both servers answer with more than a refusal (200 each),
/// and that again.
const REQUESTS_PER_SECOND: usize = 1000;
/// Lines written at once.
const GULP: usize = 20;

/// How long an open takes, from the start of the program until it is proven.
fn opens(lab: &Lab, user: &str, device: &str) -> Duration {
    let began = Instant::now();
    open(lab, user, device, &["--new"]);
    let took = began.elapsed();
    said(lab, user, &["rssh", "close", device, "--force"]);
    took
}

/// The middle one, and the fourth slowest of thirty: the 90th percentile. Further out there are too few for a figure: two
/// that the machine delayed for reasons of its own would be one.
fn middle_and_slow(mut times: Vec<Duration>) -> [Duration; 2] {
    times.sort();
    [times[times.len() / 2], times[times.len() - 4]]
}

/// Ends the flood, and who listens to its replies.
struct Ends<'a> {
    flag: &'a AtomicBool,
    listener: Process,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.flag.store(true, Ordering::Relaxed);
        self.listener.signal(Signal::SIGTERM).ok();
    }
}

#[test]
fn a_tenant_at_its_limit_hears_when_to_come_back_and_leaves_others_alone() {
    let lab = lab_alone();
    let (greedy, quiet) = ("user-35", "user-36");
    administered(&lab, &["user", "limit", greedy, "--max-tunnels", "1"]);
    open(&lab, greedy, "device-51", &[]);
    opens(&lab, quiet, "device-53");

    let session = SessionId::generate();
    let peer = Peer::user(&lab, greedy);
    let (code, replies) = peer.subscribe(&format!("rssh/v1/user/{greedy}/reply/{session}"), &["-W", "300"]);
    assert!(code < 3, "{code}");
    let request = || {
        json!({
            "v": 1, "id": TunnelId::generate(), "session": session, "deadline_ms": 5000,
            "op": "open", "device": "device-51", "target": "22", "new": true,
        })
        .to_string()
    };
    let (flooding, ends) = (AtomicBool::new(false), AtomicBool::new(false));
    // Those for a tunnel too many, and those for a request too many.
    let (full, fast) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let flood = std::iter::from_fn(|| {
        while !ends.load(Ordering::Relaxed) && !flooding.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(2));
        }
        (!ends.load(Ordering::Relaxed)).then(request)
    })
    .enumerate()
    .map(|(at, line)| {
        if at % GULP == 0 {
            thread::sleep(Duration::from_secs(1) * GULP as u32 / REQUESTS_PER_SECOND as u32);
        }
        line
    });
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        // Whatever fails, the others come to their end.
        let _end = Ends {
            flag: &ends,
            listener: replies.process(),
        };
        scope.spawn(|| {
            for reply in replies {
                if reply.contains("of at most 1") {
                    full.fetch_add(1, Ordering::Relaxed);
                } else if reply.contains("retry after") {
                    fast.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        scope.spawn(|| peer.pour(&format!("rssh/v1/user/{greedy}/request"), flood));
        let measure = |is_flooding: bool| {
            let refused = || [&full, &fast].map(|refusals| refusals.load(Ordering::Relaxed));
            let before = refused();
            flooding.store(is_flooding, Ordering::Relaxed);
            if is_flooding {
                // What it had saved up while nothing came is spent.
                within(PROMPTLY, "the greedy one is refused for each of its limits", || {
                    refused().iter().zip(before).all(|(now, before)| *now > before)
                });
            } else {
                // What is still in the lines is worked off: nothing comes for a while.
                within(PROMPTLY, "the flood runs dry", || {
                    let before = refused();
                    thread::sleep(Duration::from_millis(200));
                    before == refused()
                });
            }
            opens(&lab, quiet, "device-53")
        };
        for pair in 0..PAIRS {
            // Neither is always the first.
            for is_flooding in [pair % 2 == 0, pair % 2 != 0] {
                let took = measure(is_flooding);
                if is_flooding {
                    beside.push(took)
                } else {
                    alone.push(took)
                }
            }
        }
    });
    let (full, fast) = (full.into_inner(), fast.into_inner());
    assert!(full > PAIRS && fast > PAIRS, "refusals: {full} and {fast}");
    let told = format!("alone {alone:?}, beside {beside:?}; refusals: {full} and {fast}");
    let (alone, beside) = (middle_and_slow(alone), middle_and_slow(beside));
    println!("middle and slow: {alone:?} alone, {beside:?} beside; refusals: {full} and {fast}");
    // The promise. The flood itself, its broker's work and its client's run on the same processors, and count.
    for (alone, beside) in alone.into_iter().zip(beside) {
        assert!(beside <= alone * 2, "{told}");
    }
}

#[test]
fn a_user_who_floods_https_is_told_to_wait_and_others_are_served() {
    let lab = lab();
    let asks = |user: &str, path: &str| -> String {
        let dir = lab.dir().inside(format_args!("users/{user}/home/.config/rssh"));
        let url = format!("{}/v1/whoami{path}", rssh_lab::parts::server::url());
        let [ca, cert, key] = ["servers-ca.pem", "user.pem", "user.key"].map(|file| format!("{dir}/{file}"));
        let to = [
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} ",
            "--cacert",
            &ca,
            "--cert",
            &cert,
            "--key",
            &key,
            &url,
        ];
        said(&lab, user, &to)
    };
    assert_eq!(asks("user-39", ""), "200 ");
    // By one connection, so all to one server: it takes 200 a second, and as much as two seconds' in advance.
    let answers = asks("user-39", "?[1-2500]");
    let of = |code: &str| {
        answers
            .split_ascii_whitespace()
            .filter(|answer| *answer == code)
            .count()
    };
    assert_eq!(of("200") + of("429"), 2500, "{answers}");
    assert!(of("200") >= 400 && of("429") > 0, "{} and {}", of("200"), of("429"));
    assert_eq!(asks("user-40", ""), "200 ");
}
