//! The command on logs as servers write them, all values made up.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_log-scrub-native"));
    command.arg("scrub").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = command(arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // It may be refused before it reads.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output().unwrap()
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn logs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/logs").join(name)
}

/// What comes out stands beside what went in; `UPDATE=1` writes it anew, to be read before it is kept.
#[test]
fn golden() {
    for name in ["json", "envoy", "combined", "text"] {
        let log = std::fs::read(logs(&format!("{name}.log"))).unwrap();
        let output = run(&[], &log);
        assert_eq!(output.status.code(), Some(0));
        let path = logs(&format!("{name}.clean"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &output.stdout).unwrap();
        }
        let expected = std::fs::read(path).unwrap();
        assert_eq!(text(&output.stdout), text(&expected), "{name}");
        // What is clean stays so.
        assert_eq!(text(&run(&[], &output.stdout).stdout), text(&expected), "{name}, twice");
        for canary in ["hunter2", "ann@", "ann%40", "bob", "1111-1111", "1111%20", "abc123", "123-45-6789", "DE89"] {
            assert!(!text(&output.stdout).contains(canary), "{name}: {canary}");
        }
        let summary = text(&output.stderr);
        assert!(!summary.contains("hunter2") && !summary.contains('\x1b'), "{summary}");
    }
}

#[test]
fn summary_by_rule_and_kind() {
    let mut log = Vec::new();
    for name in ["json", "envoy", "combined", "text"] {
        log.extend(std::fs::read(logs(&format!("{name}.log"))).unwrap());
    }
    let output = run(&["--check"], &log);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 0));
    let summary = text(&output.stderr);
    let rows: Vec<Vec<&str>> = summary.lines().map(|line| line.split_whitespace().collect()).collect();
    for kind in ["9 JSON", "4 Envoy's format", "5 common or combined format", "1 [UNSCANNED]"] {
        assert!(rows.iter().any(|row| row.join(" ") == kind), "{kind}\n{summary}");
    }
    assert!(rows.iter().any(|row| row.len() == 3 && row[2] == "iban" && row[0] == "2" && row[1] == "2"), "{summary}");
    assert_eq!(run(&["--check"], b"nothing here\n").status.code(), Some(0));
}

#[test]
fn explained_without_the_text() {
    let log = "{\"a\":\"ann@example.com\",\"b\":\"x 4111 1111 1111 1111\"}\nclean\nto bob@example.com, 123-45-6789\n\
               {\"c\":\"ann\\u0040example.com\"}\n\
               1.2.3.4 - - [05/Mar/2024:08:12:44 +0000] \"GET /?a=1&mail=ann%40example.com HTTP/1.1\" 200 1\n";
    let output = run(&["--explain"], log.as_bytes());
    assert_eq!(
        text(&output.stdout),
        "1\t6\temail\n1\t30\tcard\n3\t3\temail\n3\t20\tus_ssn\n4\t6\temail\n5\t57\temail\n"
    );
    assert!(!text(&output.stderr).contains("example.com"));
    // Whatever the action is, the place is the same.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scrub.yaml");
    std::fs::write(&file, "action: { kind: partial, first: 4 }\n").unwrap();
    let partial = run(&["--explain", "--config", file.to_str().unwrap()], log.as_bytes());
    assert_eq!(text(&partial.stdout), text(&output.stdout));
}

#[test]
fn configured_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scrub.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "packs: [financial]\nown:\n  - { name: staff, regex: '\\bEMP-\\d{4}\\b' }\n").unwrap();
    let output = run(&["--config", path], b"EMP-1234 ann@example.com 4111 1111 1111 1111\n");
    assert_eq!(text(&output.stdout), "[staff] ann@example.com [card]\n");
    // A name of one's own counts for who logged in.
    std::fs::write(&file, "fields: { names: [user] }\n").unwrap();
    let log = b"1.2.3.4 - ann [05/Mar/2024:08:12:44 +0000] \"GET / HTTP/1.1\" 200 1\n";
    assert!(text(&run(&["--config", path], log).stdout).starts_with("1.2.3.4 - [field] [05/"));
    for (wrong, problem) in [
        ("packs: [money]", "at `packs[0]`: is not known, give one of"),
        ("own: [{ name: a }]", "at `own[0]`: looks for nothing or for two things, give either"),
        ("action: { kind: hmac }", "at `action.kind`: needs a key"),
    ] {
        std::fs::write(&file, wrong).unwrap();
        for arguments in [&["--config", path][..], &["--config", path, "--explain"]] {
            let output = run(arguments, b"ann@example.com\n");
            assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{wrong}");
            assert!(text(&output.stderr).contains(problem), "{}", text(&output.stderr));
        }
    }
    assert_eq!(run(&["--config", "no-such-file"], b"").status.code(), Some(2));
    assert_eq!(run(&["--no-such-option"], b"").status.code(), Some(2));
}

#[test]
fn the_key_may_be_a_variable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scrub.yaml");
    std::fs::write(&file, "action: { kind: hmac }\nhmac_key_env: SCRUB_TEST_KEY\n").unwrap();
    let run = |key: Option<&str>| {
        let mut command = command(&["--config", file.to_str().unwrap()]);
        command.env_remove("SCRUB_TEST_KEY").envs(key.map(|key| ("SCRUB_TEST_KEY", key)));
        let mut child = command.spawn().unwrap();
        // It may be refused before it reads.
        child.stdin.take().unwrap().write_all(b"ann@example.com\n").ok();
        child.wait_with_output().unwrap()
    };
    // As `openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef` has it.
    let output = run(Some("0123456789abcdef0123456789abcdef"));
    assert_eq!(text(&output.stdout), "[email_093e3dd9df951c50]\n");
    for (key, problem) in [(None, "at `hmac_key_env`: is no variable"), (Some("short"), "is too short")] {
        let output = run(key);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(problem), "{}", text(&output.stderr));
    }
}

#[test]
fn bytes_and_lengths_of_all_kinds() {
    let output = run(&[], b"caf\xe9 ann@example.com\nann@example.com\r\n\n\xffend");
    assert_eq!(output.stdout, b"[UNSCANNED]\n[email]\r\n\n[UNSCANNED]");
    // A MiB is looked at, a byte more is not; and the next line is.
    let fits = format!("{}ann@example.com", " ".repeat((1 << 20) - 15));
    let log = format!("{fits}\n {fits}\nann@example.com");
    let output = run(&[], log.as_bytes());
    assert_eq!(text(&output.stdout), format!("{}[email]\n[UNSCANNED]\n[email]", " ".repeat((1 << 20) - 15)));
}

/// A line without end would fill the memory that there is: here it may have 64 MiB for all.
#[test]
fn memory_is_bounded() {
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 65536; exec \"$0\" scrub", env!("CARGO_BIN_EXE_log-scrub-native")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for _ in 0..256 {
        stdin.write_all(&vec![b'a'; 1 << 20]).unwrap();
    }
    stdin.write_all(b"\nafter\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), "[UNSCANNED]\nafter\n");
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let mut child = command(&[]).spawn().unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    let line = b"ann@example.com\n".repeat(1000);
    while stdin.write_all(&line).is_ok() {}
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

/// As after `tail -f`.
#[test]
fn what_has_come_is_written_before_more_is_waited_for() {
    let mut child = command(&[]).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    stdin.write_all(b"to ann@example.com\n").unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = [0; 11];
        send.send(stdout.read_exact(&mut line).map(|()| line)).ok();
    });
    let line = receive.recv_timeout(std::time::Duration::from_secs(20));
    drop(stdin);
    assert_eq!(&line.expect("nothing was written").unwrap(), b"to [email]\n");
    assert!(child.wait().unwrap().success());
}
