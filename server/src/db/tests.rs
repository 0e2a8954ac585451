use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cairn_array::wire::{
    Firmware, Holdings, Inventory, MachineIdentity, MemberState, SegmentClass, TargetHello,
};
use cairn_core::{
    id::{AgentId, InstallId, MachineId, SegmentId, SnapshotId, StripeSetId, VolumeId},
    manifest::SegmentEntry,
};
use cairn_tests::postgres::fresh_database;
use sqlx::{Column as _, Executor as _, Statement as _};

use super::{
    account::{Role, Scope},
    agent::NewAgent,
    availability::Churn,
    copy::CopyError,
    deployment::{DeployError, InstallState, NewDeployment},
    image::{BeginError, ImageFormat, NewVersion, Registered},
    job::{Ended, Kind},
    segment::SegmentRow,
    snapshot::SnapshotRow,
    token::{NewToken, SpendError, TokenKind},
    volume::{Origin, VolumeLayout, VolumeRow, VolumeStage},
    *,
};
use crate::deployments::InstallEvent;

static ALL: Scope = Scope(Vec::new());
const NOW: Moment = Moment(1_000_000);

async fn open() -> (tempfile::TempDir, Db) {
    let folder = tempfile::tempdir().unwrap();
    let address = match fresh_database().unwrap() {
        Some(url) => url.parse().unwrap(),
        None => DatabaseAddress::Sqlite(folder.path().join("cairn.db")),
    };
    (folder, Db::open(&address).await.unwrap())
}

fn segment(number: u8) -> SegmentRow {
    SegmentRow { id: SegmentId([number; 32]), bytes: 100, class: SegmentClass::Data }
}

async fn version(db: &Db, name: &str, id: u8, segments: &[SegmentRow]) -> NewVersion {
    let new = db.begin_version(name, ImageFormat::Raw, NOW).await.unwrap();
    let done = Registered {
        size: ByteCount(1 << 20),
        stored: ByteCount(300),
        added: ByteCount(200),
        content: [id; 32],
        content_key: b"age",
        segments,
    };
    db.finish_version(new, done).await.unwrap();
    new
}

async fn agent(db: &Db, id: u8) -> AgentId {
    let secret = format!("secret {id}");
    let kind = TokenKind::Join;
    let token = NewToken {
        kind,
        secret: &secret,
        note: "",
        auto_approve: true,
        role: Role::Admin,
        scope: &ALL,
        now: NOW,
        expires: None,
    };
    db.keep_token(token).await.unwrap();
    let id = AgentId([id; 16]);
    let new = NewAgent {
        id,
        name: "client",
        serial: id.as_bytes(),
        lend: ByteCount(1 << 30),
        peer_port: 8442,
    };
    assert_eq!(db.add_agent_with_token(&secret, new, NOW).await.unwrap(), MemberState::Approved);
    id
}

#[tokio::test]
async fn a_join_token_lets_one_in() {
    let (_folder, db) = open().await;
    let token = |secret, expires| NewToken {
        kind: TokenKind::Join,
        secret,
        note: "",
        auto_approve: false,
        role: Role::Admin,
        scope: &ALL,
        now: NOW,
        expires,
    };
    db.keep_token(token("once", None)).await.unwrap();
    db.keep_token(token("late", Some(NOW))).await.unwrap();
    let join = |secret, id| {
        let id = AgentId([id; 16]);
        let db = &db;
        async move {
            let new =
                NewAgent { id, name: "", serial: id.as_bytes(), lend: ByteCount(1), peer_port: 1 };
            db.add_agent_with_token(secret, new, NOW).await
        }
    };
    assert_eq!(join("once", 1).await.unwrap(), MemberState::Pending);
    assert!(matches!(join("once", 2).await, Err(SpendError::Used)));
    assert!(matches!(join("late", 2).await, Err(SpendError::Expired)));
    assert!(matches!(join("wrong", 2).await, Err(SpendError::Unknown)));
    assert_eq!(db.agents().await.unwrap().len(), 1);
}

#[tokio::test]
async fn one_registration_of_a_name_at_a_time_and_an_abandoned_one_leaves_nothing() {
    let (_folder, db) = open().await;
    let first = db.begin_version("os", ImageFormat::Raw, NOW).await.unwrap();
    assert_eq!(first.number, 1);
    let second = db.begin_version("os", ImageFormat::Raw, NOW).await;
    assert!(matches!(second, Err(BeginError::Busy)), "{second:?}");
    assert!(db.images().await.unwrap().is_empty());
    assert_eq!(db.registrations_cut_short().await.unwrap(), [first.version]);
    db.abandon_version(first.version).await.unwrap();
    let again = db.begin_version("os", ImageFormat::Raw, NOW).await.unwrap();
    assert_eq!(again.number, 1);
    assert_ne!(again.image, first.image);
}

#[tokio::test]
async fn a_removed_version_takes_only_its_own_segments() {
    let (_folder, db) = open().await;
    let first = version(&db, "os", 1, &[segment(1), segment(2)]).await;
    let second = version(&db, "os", 2, &[segment(2), segment(3)]).await;
    assert_eq!(second.image, first.image);
    let ids = |rows: Vec<SegmentRow>| rows.iter().map(|row| row.id.0[0]).collect::<Vec<_>>();
    assert_eq!(ids(db.live_segments_of_image(first.image).await.unwrap()), [1, 2, 3]);
    assert_eq!(db.version_with_content(first.image, [2; 32]).await.unwrap(), Some(2));
    assert!(db.begin_removal(first.version).await.unwrap());
    assert_eq!(ids(db.live_segments_of_image(first.image).await.unwrap()), [2, 3]);
    assert_eq!(db.unused_data_segments(first.image).await.unwrap(), [segment(1).id]);
    db.forget_version(first.version).await.unwrap();
    assert_eq!(ids(db.segments_of_set(first.image.into()).await.unwrap()), [2, 3]);
    assert!(db.begin_removal(second.version).await.unwrap());
    db.forget_version(second.version).await.unwrap();
    assert!(db.segments_of_set(first.image.into()).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_assignment_wakes_only_those_whose_share_changed() {
    let (_folder, db) = open().await;
    let new = version(&db, "os", 1, &[segment(1), segment(2)]).await;
    let (a, b) = (agent(&db, 1).await, agent(&db, 2).await);
    let (s1, s2) = (segment(1).id, segment(2).id);
    assert_eq!(db.assign_set(new.image.into(), &[(a, s1), (b, s2)]).await.unwrap(), [a, b]);
    assert_eq!(db.assign_set(new.image.into(), &[(a, s1), (b, s2)]).await.unwrap(), []);
    assert_eq!(db.assign_set(new.image.into(), &[(a, s1), (b, s2), (b, s1)]).await.unwrap(), [b]);
    let full = Holdings {
        full: true,
        stored: vec![s1, SegmentId([99; 32])],
        fulfils: Some(Generation(1)),
        ..Holdings::default()
    };
    assert!(db.note_holdings(a, &full).await.unwrap().is_empty());
    assert!(!db.agent(a).await.unwrap().unwrap().want_holdings);
    let (number, segments, recheck) = db.assignment_of_agent(b).await.unwrap();
    assert_eq!((number, segments.len(), recheck.len()), (Generation(2), 2, 0));
    assert_eq!(segments[0].sources, [a]);
    let count = db.scatter_count_of_set(new.image.into()).await.unwrap();
    assert_eq!((count.wanted, count.held, count.held_bytes), (3, 1, ByteCount(100)));

    // A target says that `a` served it wrong bytes: it is no holder until it has looked again.
    assert_eq!(db.doubt_holdings(&[(a, s1), (a, s2)]).await.unwrap(), 1);
    assert!(db.holders_of_set(new.image.into()).await.unwrap().is_empty());
    let (number, _, recheck) = db.assignment_of_agent(a).await.unwrap();
    assert_eq!((number, recheck), (Generation(2), vec![s1]));
    let stored = Holdings { stored: vec![s1], ..Holdings::default() };
    db.note_holdings(a, &stored).await.unwrap();
    assert!(db.assignment_of_agent(a).await.unwrap().2.is_empty());

    let dropped = Holdings { dropped: vec![s1], ..Holdings::default() };
    assert_eq!(db.note_holdings(a, &dropped).await.unwrap(), [new.image.into()]);
    assert!(db.move_agent(b, &[MemberState::Approved], MemberState::Revoked).await.unwrap());
    assert_eq!(db.assignments_of_set(new.image.into()).await.unwrap(), [(a, s1)]);
}

#[tokio::test]
async fn jobs_are_queued_once_and_resumed() {
    let (_folder, db) = open().await;
    let kind = Kind::Scatter { set: StripeSetId([1; 16]) };
    db.queue_job(kind, Moment(500), NOW).await.unwrap();
    db.queue_job(kind, Moment(400), NOW).await.unwrap();
    assert_eq!(db.jobs(10).await.unwrap().len(), 1);
    assert!(db.claim_job(Moment(399)).await.unwrap().is_none());
    assert_eq!(db.next_job_due().await.unwrap(), Some(Moment(400)));
    let job = db.claim_job(NOW).await.unwrap().unwrap();
    assert_eq!((job.kind, job.attempts), (kind, 1));
    // Queued again while it runs: it waits for the run to end.
    db.queue_job(kind, Moment(400), NOW).await.unwrap();
    assert!(db.claim_job(NOW).await.unwrap().is_none());
    // The process dies here.
    assert_eq!(db.resume_jobs(NOW).await.unwrap(), 0);
    let again = db.claim_job(NOW).await.unwrap().unwrap();
    assert_ne!(again.id, job.id);
    db.end_job(again.id, Ended::Retry { error: "no", due: NOW }, NOW).await.unwrap();
    let third = db.claim_job(NOW).await.unwrap().unwrap();
    assert_eq!((third.id, third.attempts, third.error.as_deref()), (again.id, 2, Some("no")));
    assert_eq!(db.resume_jobs(NOW).await.unwrap(), 1);
    let fourth = db.claim_job(NOW).await.unwrap().unwrap();
    db.end_job(fourth.id, Ended::Done, NOW).await.unwrap();
    assert!(db.claim_job(NOW).await.unwrap().is_none());
}

#[tokio::test]
async fn a_machine_has_one_open_install_and_its_end_is_remembered() {
    let (_folder, db) = open().await;
    let new = version(&db, "os", 1, &[segment(1)]).await;
    let hello = TargetHello {
        csr_pem: String::new(),
        identity: MachineIdentity {
            macs: vec!["52:54:00:00:00:01".into()],
            ..MachineIdentity::default()
        },
        disks: Vec::new(),
        firmware: Firmware::Uefi,
        secure_boot: false,
        image: None,
        inventory: Inventory::default(),
    };
    let machine = db.meet_machine(MachineId([1; 16]), &hello, NOW).await.unwrap();
    assert_eq!(db.meet_machine(MachineId([2; 16]), &hello, NOW).await.unwrap(), machine);
    let deploy = |id| {
        let db = &db;
        async move {
            let installs = [(InstallId([id; 16]), machine)];
            let deployment = NewDeployment {
                version: new.version,
                disk: &cairn_array::wire::DiskSelector::Only,
                after: cairn_array::wire::AfterInstall::Reboot,
                preapproved: false,
                at_once: false,
                storage: None,
                rate_limit: None,
                installs: &installs,
            };
            db.deploy(&deployment, NOW).await
        }
    };
    deploy(1).await.unwrap();
    assert!(matches!(deploy(2).await, Err(DeployError::Busy { .. })));
    assert_eq!(db.deployments(10).await.unwrap().len(), 1);
    assert!(!db.begin_removal(new.version).await.unwrap());
    let id = InstallId([1; 16]);
    assert_eq!(db.install(id).await.unwrap().unwrap().heard, None);
    assert_eq!(db.advance_install(id, InstallEvent::Finished, NOW).await.unwrap(), None);
    let target = target::TargetRow {
        hash: [7; 32],
        machine,
        public_key: vec![1],
        code: "AAAA-BBBB".into(),
        state: target::TargetState::Approved,
        image: None,
        address: "192.0.2.1:1".parse().unwrap(),
        install: Some(id),
    };
    db.begin_target(&target, NOW).await.unwrap();
    db.hand_install_to(id, target.hash, false, NOW).await.unwrap();
    let later = NOW.plus(Duration::from_secs(9));
    db.target_seen(target.hash, later).await.unwrap();
    assert_eq!(db.install(id).await.unwrap().unwrap().heard, Some(later));
    for (event, state) in [
        (InstallEvent::Ticket, InstallState::Ticketed),
        (InstallEvent::Working, InstallState::Running),
        (InstallEvent::Finished, InstallState::Done),
    ] {
        assert_eq!(db.advance_install(id, event, NOW).await.unwrap(), Some(state));
    }
    assert_eq!(db.machine(machine).await.unwrap().unwrap().installed, Some(new.version));
    deploy(3).await.unwrap();
}

#[tokio::test]
async fn events_come_back_in_order_from_an_id_on() {
    let (_folder, db) = open().await;
    for id in [5, 6, 9] {
        db.record_event(id, "image-changed", "{}").await.unwrap();
    }
    let ids = |rows: Vec<event::EventRow>| rows.iter().map(|row| row.id).collect::<Vec<_>>();
    assert_eq!(ids(db.events_after(5, 10).await.unwrap()), [6, 9]);
    assert_eq!(ids(db.events_after(0, 2).await.unwrap()), [5, 6]);
}

#[tokio::test]
async fn a_new_bundle_is_kept_beside_the_published_one_until_it_takes_its_place() {
    let (_folder, db) = open().await;
    let entry = |byte| SegmentEntry { id: SegmentId([byte; 32]), bytes: 100 };
    let member = agent(&db, 1).await;
    let number = || async { db.agent(member).await.unwrap().unwrap().assignment };
    let before = number().await;
    let first = db.add_bundle(&[entry(1), entry(2)]).await.unwrap();
    assert!(number().await > before, "a new bundle is a new assignment");
    let told = |ids: &[u8]| Holdings {
        stored: ids.iter().map(|byte| SegmentId([*byte; 32])).collect(),
        ..Holdings::default()
    };
    // What is of no bundle is not worth a row.
    db.note_holdings(member, &told(&[1, 2, 9])).await.unwrap();
    let held: Vec<_> = db.bundle_holders().await.unwrap().into_keys().collect();
    assert_eq!(held, [entry(1).id, entry(2).id]);
    assert!(db.publish_bundle(first).await.unwrap());
    assert!(!db.publish_bundle(first).await.unwrap(), "it is published already");
    let second = db.add_bundle(&[entry(1), entry(3)]).await.unwrap();
    let kept: Vec<_> = db.bundles().await.unwrap().iter().map(|it| it.published).collect();
    assert_eq!(kept, [true, false]);
    db.note_holdings(member, &told(&[3])).await.unwrap();
    let lost = Holdings { dropped: vec![entry(1).id], ..Holdings::default() };
    db.note_holdings(member, &lost).await.unwrap();
    assert!(db.publish_bundle(second).await.unwrap());
    let bundles = db.bundles().await.unwrap();
    assert_eq!(bundles.len(), 1);
    assert_eq!((bundles[0].id, bundles[0].published), (second, true));
    let held: Vec<_> = db.bundle_holders().await.unwrap().into_keys().collect();
    assert_eq!(held, [entry(3).id], "2 is of no bundle any more, 1 was dropped");
}

#[tokio::test]
async fn looks_are_counted_by_the_hour_and_go_with_their_agent() {
    use cairn_core::availability::HourOfWeek;
    let (_folder, db) = open().await;
    let (one, other) = (agent(&db, 1).await, agent(&db, 2).await);
    let hour = |number| HourOfWeek::new(number).unwrap();
    for minute in 0..120 {
        let seen = [(one, true), (other, minute % 2 == 0), (AgentId([9; 16]), true)];
        db.note_presence(hour(9), &seen).await.unwrap();
    }
    db.note_presence(hour(167), &[(one, false)]).await.unwrap();
    let weeks = db.weeks().await.unwrap();
    assert_eq!(
        weeks.keys().copied().collect::<Vec<_>>(),
        [one, other],
        "strangers are not counted"
    );
    let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
    // An assumed hour of 48 out of 60 looks is counted in.
    assert!(close(weeks[&one].estimate(hour(9)), 168.0 / 180.0));
    assert!(close(weeks[&other].estimate(hour(9)), 108.0 / 180.0));
    assert!(close(weeks[&one].estimate(hour(167)), 48.0 / 61.0));
    assert!(close(weeks[&other].estimate(hour(167)), 0.8));
}

/// A database in its first, and in its last, form.
async fn filled(db: &Db) {
    let new = version(db, "lab", 1, &[segment(1), segment(2)]).await;
    let holder = agent(db, 7).await;
    db.assign_set(new.image.into(), &[(holder, SegmentId([1; 32]))]).await.unwrap();
    let holdings = Holdings { full: true, stored: vec![SegmentId([1; 32])], ..Holdings::default() };
    db.note_holdings(holder, &holdings).await.unwrap();
    db.queue_job(Kind::Scrub, NOW, NOW).await.unwrap();
    db.record_event(9, "kind", "{}").await.unwrap();
    db.keep_setting("key", b"\0\xff").await.unwrap();
    // A volume that began as the snapshot of another, which sorts after it.
    let volume = |id, name: &str, origin| VolumeRow {
        id: VolumeId([id; 16]),
        name: name.to_owned(),
        size: ByteCount(1 << 45),
        stage: VolumeStage::Ready,
        content_key: vec![1],
        origin,
        layout: VolumeLayout::Server,
        promise: None,
        created: NOW,
    };
    db.add_volume(&volume(2, "origin", Some(Origin::Version(new.version)))).await.unwrap();
    assert_eq!(db.known_root(VolumeId([2; 16])).await.unwrap(), None);
    for root in [b"older", b"newer"] {
        db.keep_known_root(VolumeId([2; 16]), root).await.unwrap();
    }
    assert_eq!(db.known_root(VolumeId([2; 16])).await.unwrap().unwrap(), b"newer");
    let snapshot = SnapshotRow {
        id: SnapshotId([3; 16]),
        volume: VolumeId([2; 16]),
        name: "clean".to_owned(),
        size: ByteCount(1),
        stage: VolumeStage::Ready,
        created: NOW,
        clones: Vec::new(),
    };
    db.add_snapshot(&snapshot).await.unwrap();
    db.add_volume(&volume(1, "clone", Some(Origin::Snapshot(snapshot.id)))).await.unwrap();
    let hello = TargetHello {
        csr_pem: String::new(),
        identity: MachineIdentity {
            macs: vec!["52:54:00:00:00:01".to_owned()],
            ..MachineIdentity::default()
        },
        disks: Vec::new(),
        firmware: Firmware::Uefi,
        secure_boot: true,
        image: None,
        inventory: Inventory::default(),
    };
    db.meet_machine(MachineId([4; 16]), &hello, NOW).await.unwrap();
    // The newest bundle is gone, and its number is not given again.
    for _ in 0..2 {
        db.add_bundle(&[SegmentEntry { id: SegmentId([8; 32]), bytes: 5 }]).await.unwrap();
    }
    db.publish_bundle(1).await.unwrap();
}

async fn everything(db: &Db) -> String {
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        db.versions().await.unwrap(),
        db.agents().await.unwrap(),
        db.volumes().await.unwrap(),
        db.snapshots().await.unwrap(),
        db.machines().await.unwrap(),
        db.bundles().await.unwrap(),
        db.jobs(10).await.unwrap(),
        db.events_after(0, 10).await.unwrap(),
        db.tokens().await.unwrap(),
        db.setting("key").await.unwrap(),
    )
}

#[tokio::test]
async fn a_copy_of_either_kind_has_everything_and_goes_on_counting() {
    let (folder, db) = open().await;
    filled(&db).await;
    let file = |name: &str| DatabaseAddress::Sqlite(folder.path().join(name));
    let (_other_folder, there) = open().await;
    let back = Db::open(&file("back.db")).await.unwrap();
    let rows = db.copy_to(&there).await.unwrap();
    assert_eq!(there.copy_to(&back).await.unwrap(), rows);
    let all = everything(&db).await;
    assert!(all.contains("clone") && all.contains("secure_boot: true"), "{all}");
    for copy in [&there, &back] {
        assert_eq!(everything(copy).await, all);
        assert_eq!(copy.add_bundle(&[]).await.unwrap(), 3);
        assert_eq!(
            copy.keep_token(NewToken {
                kind: TokenKind::Api,
                secret: "next",
                note: "",
                auto_approve: false,
                role: Role::Admin,
                scope: &ALL,
                now: NOW,
                expires: None,
            })
            .await
            .unwrap(),
            2
        );
        let refused = db.copy_to(copy).await.unwrap_err();
        assert!(matches!(refused, CopyError::NotEmpty), "{refused}");
    }
    // One that the site was moved away from is as good as empty.
    there.note_moved(&file("back.db")).await.unwrap();
    assert_eq!(db.copy_to(&there).await.unwrap(), rows);
    assert_eq!(there.moved().await.unwrap(), None);
    assert_eq!(everything(&there).await, all);
}

/// Every table with its columns.
async fn schema(db: &Db) -> BTreeMap<String, BTreeSet<String>> {
    let tables = match db.kind {
        pool::Kind::Sqlite => {
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        }
        pool::Kind::Postgres => {
            "SELECT CAST(tablename AS TEXT) AS name FROM pg_tables WHERE schemaname = 'public'"
        }
    };
    let names: Vec<String> = sqlx::query_scalar(tables).fetch_all(&db.pool).await.unwrap();
    let mut schema = BTreeMap::new();
    for name in names.into_iter().filter(|name| name != "_sqlx_migrations") {
        let all = sql(format!("SELECT * FROM {name}"));
        let all = db.pool.acquire().await.unwrap().prepare(all).await.unwrap();
        schema.insert(name, all.columns().iter().map(|column| column.name().to_owned()).collect());
    }
    schema
}

#[tokio::test]
async fn both_schemas_are_the_same_and_all_of_them_is_copied() {
    let (folder, db) = open().await;
    let sqlite = Db::open(&DatabaseAddress::Sqlite(folder.path().join("other.db"))).await.unwrap();
    let found = schema(&db).await;
    assert_eq!(found, schema(&sqlite).await);
    assert_eq!(found.into_keys().collect::<BTreeSet<_>>(), copy::TABLES.map(str::to_owned).into());
}

#[tokio::test]
async fn how_the_fleet_changed_is_added_up_by_the_day_and_forgotten_after_ninety() {
    let (_folder, db) = open().await;
    let churn = |came, went, joined, gone| Churn { came, went, joined, gone };
    db.note_churn(100, churn(1, 2, 3, 4)).await.unwrap();
    db.note_churn(100, churn(10, 0, 0, 1)).await.unwrap();
    db.note_churn(101, churn(0, 1, 0, 0)).await.unwrap();
    let both = [(100, churn(11, 2, 3, 5)), (101, churn(0, 1, 0, 0))];
    assert_eq!(db.churn_since(100).await.unwrap(), both);
    assert_eq!(db.churn_since(101).await.unwrap(), both[1..]);
    db.note_churn(190, churn(0, 0, 1, 0)).await.unwrap();
    let kept = db.churn_since(0).await.unwrap();
    assert_eq!(kept.iter().map(|(day, _)| *day).collect::<Vec<_>>(), [101, 190]);
    // What nobody installed has no history, and nothing waits.
    assert_eq!(db.ended_by_the_hour(NOW).await.unwrap(), []);
    let waiting = db.waiting(NOW).await.unwrap();
    assert_eq!((waiting.agents, waiting.machines, waiting.installs), (0, 0, 0));
}
