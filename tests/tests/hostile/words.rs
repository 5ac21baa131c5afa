//! Bad words at every door: none has an effect, and each is named in a clear error.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use rssh_proto::payload::{self, Request};

use crate::administer;
use crate::thief::robbed;
use crate::{all_of, lab};

/// What a shell, an option parser, a terminal, a format string, a path or a C string would trip over.
fn corpus() -> Vec<String> {
    let short = [
        "a\nb",
        "a;touch${IFS}/tmp/rssh-was-here",
        "$(id)",
        "`id`",
        "-o",
        "-oProxyCommand=id",
        "--",
        "-",
        "\u{1b}]0;x\u{7}",
        "\u{1b}[2J",
        "%h",
        "%s%n",
        "../x",
        "../../etc/passwd",
        "\u{202e}ecived",
        "a b",
        "a|b",
        "a&b",
        "'",
        "\"",
        "\\",
        "*",
        "+",
        "#",
        "$share/x",
        "a/b",
        "{}",
        "",
        " ",
        "\t",
        "é",
        "A",
        "a=b=c",
        "; add map x y",
    ];
    let mut words: Vec<String> = short.map(str::to_owned).to_vec();
    words.push("a".repeat(64 * 1024));
    words
}

/// What a door says to bad words: an error, in one line that a terminal can take.
#[track_caller]
fn refused(what: &str, word: &str, output: &std::process::Output) {
    let (said, wrote) = (
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
    );
    let shown = format!(
        "{what} {:?}: {}",
        &word.chars().take(40).collect::<String>(),
        all_of(output)
    );
    assert!(!output.status.success(), "{shown}");
    assert!(output.status.code().is_some_and(|code| code != 101), "a panic: {shown}");
    assert!(!said.is_empty() && said.len() < 20_000, "{shown}");
    assert!(wrote.is_empty(), "{shown}");
    let strange = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!said.contains(strange), "{shown}");
    assert!(!said.contains("uid=0"), "{shown}");
}

#[test]
fn bad_words_are_refused_at_every_door() {
    let lab = lab();
    let everything = || {
        lab.psql("SELECT (SELECT count(*) FROM identities), (SELECT count(*) FROM device_tags), (SELECT count(*) FROM groups)")
            .unwrap()
    };
    let before = everything();
    for word in corpus() {
        // What the kernel itself does not take as an argument is no door.
        let argument = word.as_str();
        let user_doors: [&[&str]; 5] = [
            &["rssh", "open", argument],
            &["rssh", "open", "device-53", "--port", argument],
            &["rssh", "open", "device-53", "--to", argument],
            &["rssh", "proxy", argument, "22"],
            &["rssh", "close", argument],
        ];
        if !matches!(argument, "--" | "-") {
            for argv in user_doors {
                let help = argument.is_empty() && argv.len() == 3 && argv[1] == "close";
                if !help {
                    refused(&argv[..2].join(" "), &word, &lab.exec("user-36", argv).unwrap());
                }
            }
        }
        let admin_doors: [&[&str]; 8] = [
            &["grant", "add", argument, "--all-devices"],
            &["grant", "add", "user-36", "--device", argument],
            &["grant", "add", "user-36", "--tag", argument],
            &["grant", "add", "user-36", "--all-devices", "--target", argument],
            &["group", "add", argument],
            &["device", "tag", "device-53", argument],
            &["device", "revoke", argument],
            &["user", "revoke", argument],
        ];
        for argv in admin_doors {
            let target = argv.contains(&"--target");
            // A word may be a target's, a tag's or a user's right spelling.
            if word == "a=b=c" && target {
                continue;
            }
            refused(&argv[..2].join(" "), &word, &administer(&lab, argv));
        }
    }
    assert_eq!(everything(), before);
    assert!(!std::path::Path::new("/tmp/rssh-was-here").exists());
}

#[test]
fn a_forced_command_takes_no_bad_words() {
    let lab = lab();
    let (thief, _) = robbed(&lab, "user-39", 55);
    for word in corpus().iter().filter(|word| word.len() < 1000) {
        let output = thief.ssh(&[], &["--", word]);
        let said = all_of(&output);
        assert!(!said.contains("uid="), "{word:?}: {said}");
    }
}

#[test]
fn what_is_no_json_of_ours_is_refused_at_once() {
    let request = r#"{"v":1,"id":"0193e7f0-0000-7000-8000-000000000000","session":"0123456789abcdef","deadline_ms":1,"op":"list"}"#;
    assert!(payload::decode::<Request>(request.as_bytes()).is_ok());
    let twice = request.replacen("\"deadline_ms\":1", "\"deadline_ms\":1,\"deadline_ms\":2", 1);
    let bad: [(&str, Vec<u8>); 6] = [
        ("depth 100,000", "[".repeat(100_000).into_bytes()),
        ("depth within the limit", "[".repeat(4000).into_bytes()),
        ("1 MiB", vec![b' '; 1 << 20]),
        (
            "1 MiB of text",
            format!("{{\"v\":\"{}\"}}", "a".repeat(1 << 20)).into_bytes(),
        ),
        ("bad UTF-8", [request.as_bytes(), b"\xc3\x28"].concat()),
        ("a key twice", twice.into_bytes()),
    ];
    for (what, bytes) in bad {
        let began = Instant::now();
        let refused = payload::decode::<Request>(&bytes).is_err();
        let took = began.elapsed();
        assert!(refused, "{what}");
        // Ten are promised; a debug build on a noisy machine gets more.
        assert!(took < Duration::from_millis(100), "{what}: {took:?}");
    }
}

#[test]
fn serverds_sockets_take_no_bad_words() {
    let lab = lab();
    for name in ["authorize", "claim", "control"] {
        let socket = format!("servers/s1/state/run/{name}.sock");
        for word in corpus() {
            let mut stream = rssh_lab::ready::connect_unix(lab.dir(), &socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // It may hang up before it has read all.
            stream.write_all(format!("{word}\n").as_bytes()).ok();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok();
            let gave =
                answer.contains("permitlisten") || answer.contains("\"claimed\"") || answer.contains("\"capacity\"");
            assert!(!gave, "{name}: {answer}");
        }
    }
    assert_eq!(crate::health(&lab).len(), crate::SERVERS as usize);
}
