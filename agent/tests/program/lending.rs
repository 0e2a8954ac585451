//! Terms of lending that change while the agent runs.

use std::{fs, path::Path, time::Duration};

use cairn_agent::daemon::Status;
use cairn_array::dsf::SlotCount;
use cairn_core::{id::SegmentId, units::ByteCount};

use crate::{
    agent,
    client::{joined, segment, start},
    outcome,
    site::{AGENT, Site},
};

fn status(state: &Path) -> Status {
    serde_json::from_slice(&agent(state, &["status", "--json"]).stdout).unwrap()
}

/// Waits for the running agent to be as it is to be.
async fn until(state: &Path, enough: impl Fn(&Status) -> bool) -> Status {
    for _ in 0..300 {
        let now = status(state);
        if enough(&now) {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not in time: {:?}", status(state));
}

async fn lend(state: &Path, arguments: &[&str]) -> String {
    let mut all = vec!["lend".to_owned(), "--reserve".to_owned(), "16MiB".to_owned()];
    all.extend(arguments.iter().map(ToString::to_string));
    let state = state.to_owned();
    let told = tokio::task::spawn_blocking(move || {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let output = agent(&state, &all);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    });
    told.await.unwrap()
}

async fn holding(state: &Path, count: u8) -> (Site, Vec<SegmentId>, crate::client::Running) {
    let site = joined(state).await;
    let ids: Vec<SegmentId> = (1..=count).map(|byte| site.stock(&segment(byte))).collect();
    let number = site.assign(&ids, &[AGENT]);
    let running = start(state);
    site.fulfilled(number).await;
    (site, ids, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn lending_less_gives_the_room_up_and_lending_more_takes_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let (site, ids, _running) = holding(folder.path(), 9).await;
    let file = folder.path().join("segments.dsf");
    let before = fs::metadata(&file).unwrap().len();

    let (four, lent) = (SlotCount(4), SlotCount(4).file_bytes());
    let said = lend(folder.path(), &[&lent.0.to_string()]).await;
    assert!(said.contains("holds") && said.contains("in 4 segments"), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().len(), four.file_bytes().0);
    assert!(before > four.file_bytes().0);
    site.told("what is lent now", |script| script.lend == lent).await;
    // Five were given up, and it says which.
    site.told("what was given up", |script| {
        let dropped = script.holdings.iter().flat_map(|told| &told.dropped);
        dropped.filter(|id| ids.contains(id)).count() == 5
    })
    .await;
    site.told("that there is no room", |script| {
        script.holdings.iter().any(|told| told.no_room.is_some())
    })
    .await;

    lend(folder.path(), &["64MiB"]).await;
    site.told("what is lent again", |script| script.lend == ByteCount(64 << 20)).await;
    // What is assigned is fetched again.
    until(folder.path(), |status| status.segments == 9).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_any_more_once_a_days_writes_are_used_up() {
    let folder = tempfile::tempdir().unwrap();
    let (site, _, running) = holding(folder.path(), 3).await;
    // Three segments of 200,000 bytes were written; what is allowed is less.
    let said = lend(folder.path(), &["64MiB", "--daily-writes", "500000"]).await;
    assert!(said.contains("at most 488 KiB a day"), "{said}");
    site.told("that it stores nothing", |script| !script.stores).await;
    let more: Vec<SegmentId> = (1..=5).map(|byte| site.stock(&segment(byte))).collect();
    let number = site.assign(&more, &[AGENT]);
    let now = until(folder.path(), |status| status.storage_problem.is_some()).await;
    assert_eq!((now.segments, now.assignment), (3, number), "{now:?}");
    assert!(now.storage_problem.unwrap().contains("goes on tomorrow"));
    assert!(now.guest.written_today >= ByteCount(600_000));

    // A new start is not a new day.
    running.terminate();
    site.change(|script| script.stores = true);
    let _running = start(folder.path());
    site.told("that it still stores nothing", |script| !script.stores).await;
    assert!(status(folder.path()).guest.written_today >= ByteCount(600_000));
    lend(folder.path(), &["64MiB"]).await;
    site.fulfilled(number).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terms_that_make_no_sense_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let (code, said) = outcome(&state, &["lend", "20GiB"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("cairn-agent join"), "{said}");
    let _site = joined(&state).await;
    let before = fs::read(state.join("lending.json")).unwrap();
    let (code, said) = outcome(&state, &["lend", "1MiB"]);
    assert!(code == Some(1) && said.contains("lend at least 8MiB"), "{said}");
    let (code, said) = outcome(&state, &["lend", "150%"]);
    assert!(code == Some(2) && said.contains("a share of the disk like 15%"), "{said}");
    assert_eq!(fs::read(state.join("lending.json")).unwrap(), before);
    // Without a running agent the terms count from the next start on.
    let share = agent(&state, &["lend", "15%"]);
    assert!(String::from_utf8_lossy(&share.stdout).contains("from the next start on"));
}
