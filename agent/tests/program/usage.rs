//! The program as a user meets it where no site is needed: exit codes, and errors that say what to do.

use std::path::Path;

use crate::outcome;

fn token() -> String {
    format!("cairn_join_{}_{}", "A".repeat(43), "ab".repeat(32))
}

#[test]
fn wrong_usage_ends_with_2() {
    let state = tempfile::tempdir().unwrap();
    for arguments in [
        &["fly"][..],
        &["join", "https://127.0.0.1:1"],
        &["join", "https://127.0.0.1:1", "no-token", "--lend", "1GiB"],
        &["join", "https://127.0.0.1:1", &token(), "--lend", "much"],
        &["join", "http://127.0.0.1:1", &token(), "--lend", "1GiB"],
        &["install", "debian"],
    ] {
        assert_eq!(outcome(state.path(), arguments).0, Some(2), "{arguments:?}");
    }
}

#[test]
fn what_needs_a_membership_names_the_command_that_gives_one() {
    let state = tempfile::tempdir().unwrap();
    let disk = state.path().join("disk.img");
    let disk = disk.to_str().unwrap();
    for arguments in
        [&["run"][..], &["status"], &["images"], &["leave"], &["install", "debian", "--disk", disk]]
    {
        let (code, said) = outcome(state.path(), arguments);
        assert_eq!(code, Some(1), "{arguments:?}");
        assert!(said.contains("cairn-agent join URL TOKEN"), "{arguments:?}: {said}");
    }
    assert!(!Path::new(disk).exists(), "nothing is made before it is known what for");
}

#[test]
fn joining_an_absent_server_fails_and_can_be_tried_again() {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("state");
    // Nobody listens there: ports below 1024 are given to nobody who asks for any.
    let url = "https://127.0.0.1:1";
    for _ in 0..2 {
        // On a disk that is nearly full, too.
        let lend = ["--lend", "16MiB", "--reserve", "1MiB"];
        let (code, said) = outcome(&folder, &[&["join", url, &token()][..], &lend].concat());
        assert_eq!(code, Some(1));
        assert!(said.contains("join the site at https://127.0.0.1"), "{said}");
        assert!(said.contains("cannot be reached"), "{said}");
    }
    let (_, said) = outcome(&folder, &["status"]);
    assert!(said.contains("has not joined"), "{said}");
    let (code, said) = outcome(&folder, &["join", url, &token(), "--lend", "1MiB"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("too little"), "{said}");
    let api = token().replace("join", "api");
    let (_, said) = outcome(&folder, &["join", url, &api, "--lend", "16MiB"]);
    assert!(said.contains("cairn-server token create"), "{said}");
}

#[test]
fn init_is_for_the_boot_payload_only() {
    let state = tempfile::tempdir().unwrap();
    let (code, said) = outcome(state.path(), &["init"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("cairn-agent install"), "{said}");
}
