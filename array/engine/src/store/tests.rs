//! The store on real folders and small real disks.

use std::{os::unix::fs::PermissionsExt, path::PathBuf};

use object_store::memory::InMemory;

use super::*;
use crate::test_disk::SmallDisk;

fn bytes_of(name: u8, length: usize) -> (SegmentId, Bytes) {
    let bytes = Bytes::from(vec![name; length]);
    (SegmentId::of(&bytes), bytes)
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    (folder, root)
}

fn store(roots: &[&PathBuf]) -> Store {
    Store::new(roots.iter().map(|root| Device::open_or_create(root).unwrap()).collect()).unwrap()
}

fn file_of(root: &std::path::Path, id: SegmentId) -> PathBuf {
    root.join(segment_path(id).as_ref())
}

async fn listed(store: &Store) -> Vec<SegmentId> {
    let mut ids: Vec<_> =
        store.segments().map_ok(|segment| segment.id).try_collect().await.unwrap();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn keeps_segments_by_id() {
    let (_folder, root) = folder();
    let store = store(&[&root]);
    let mut ids = Vec::new();
    for name in 0..5 {
        let (id, bytes) = bytes_of(name, 100_000);
        store.put_segment(id, bytes.clone()).await.unwrap();
        assert_eq!(store.get_segment(id).await.unwrap(), bytes);
        ids.push(id);
    }
    ids.sort_unstable();
    assert_eq!(listed(&store).await, ids);
    store.flush().await.unwrap();

    assert!(store.delete_segment(ids[0]).await.unwrap());
    assert!(!store.delete_segment(ids[0]).await.unwrap());
    assert!(!store.has_segment(ids[0]).await.unwrap());
    assert!(store.has_segment(ids[1]).await.unwrap());
    assert!(matches!(store.get_segment(ids[0]).await, Err(StoreError::NotFound { .. })));

    let hex = ids[1].to_string();
    let file = root.join("segments").join(&hex[..2]).join(&hex);
    assert_eq!(std::fs::metadata(file).unwrap().len(), 100_000);
}

#[tokio::test]
async fn refuses_bytes_that_are_not_the_segment() {
    let (_folder, root) = folder();
    let store = store(&[&root]);
    let refused = store.put_segment(bytes_of(1, 10).0, bytes_of(2, 10).1).await;
    assert!(matches!(refused, Err(StoreError::Check(_))));
    assert_eq!(listed(&store).await, []);
}

#[tokio::test]
async fn a_damaged_segment_is_told_with_its_device_and_replaced_by_a_put() {
    let (_folder, root) = folder();
    let store = store(&[&root]);
    let (id, bytes) = bytes_of(1, 10_000);
    store.put_segment(id, bytes.clone()).await.unwrap();
    for damage in [vec![1; 9_999], vec![2; 10_000], vec![], vec![0; SEGMENT_MAX_BYTES + 1]] {
        std::fs::write(file_of(&root, id), &damage).unwrap();
        match store.get_segment(id).await.unwrap_err() {
            StoreError::Corrupt { device, .. } => assert_eq!(device, root.display().to_string()),
            other => panic!("{other}"),
        }
    }
    store.put_segment(id, bytes.clone()).await.unwrap();
    assert_eq!(store.get_segment(id).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_good_copy_on_another_device_is_found() {
    let (_first, one) = folder();
    let (_second, two) = folder();
    let store = store(&[&one, &two]);
    let (id, bytes) = bytes_of(1, 10_000);
    for root in [&one, &two] {
        std::fs::write(file_of(root, id), &bytes).unwrap();
    }
    std::fs::write(file_of(&one, id), b"rot").unwrap();
    assert_eq!(store.get_segment(id).await.unwrap(), bytes);
    assert!(store.delete_segment(id).await.unwrap());
    assert!(!file_of(&one, id).exists() && !file_of(&two, id).exists());
}

#[tokio::test]
async fn the_device_with_most_room_is_filled_first() {
    let small = SmallDisk::mount(8 << 20);
    let large = SmallDisk::mount(16 << 20);
    let (one, two) = (small.path().to_owned(), large.path().to_owned());
    let store = store(&[&one, &two]);
    let mut put = Vec::new();
    for name in 0..4 {
        let (id, bytes) = bytes_of(name, 4 << 20);
        store.put_segment(id, bytes).await.unwrap();
        put.push(id);
    }
    let on_two = put.iter().filter(|id| file_of(&two, **id).exists()).count();
    assert_eq!(on_two, 3);
    let space = store.space().await.unwrap();
    assert!(space.iter().all(|device| device.free.unwrap() < ByteCount(4 << 20)), "{space:?}");

    // Neither has room for another, and nothing of it stays behind.
    let (id, bytes) = bytes_of(9, 4 << 20);
    assert!(matches!(store.put_segment(id, bytes).await, Err(StoreError::Full { .. })));
    assert!(!store.has_segment(id).await.unwrap());
    let (id, bytes) = bytes_of(10, 100_000);
    store.put_segment(id, bytes.clone()).await.unwrap();
    assert_eq!(store.get_segment(id).await.unwrap(), bytes);
    for id in put {
        store.get_segment(id).await.unwrap();
    }
}

#[tokio::test]
async fn a_missing_device_is_named_and_not_taken_for_an_empty_one() {
    let (_first, one) = folder();
    let (second, two) = folder();
    let store = store(&[&one, &two]);
    let (here, bytes) = bytes_of(1, 1000);
    std::fs::write(file_of(&one, here), &bytes).unwrap();
    std::fs::rename(&two, second.path().join("gone")).unwrap();

    let (absent, other) = bytes_of(2, 1000);
    let lost = |error: StoreError| match error {
        StoreError::Lost { device, .. } => assert_eq!(device, two.display().to_string()),
        other => panic!("{other}"),
    };
    assert_eq!(store.get_segment(here).await.unwrap(), bytes);
    lost(store.get_segment(absent).await.unwrap_err());
    lost(store.has_segment(absent).await.unwrap_err());
    lost(store.put_segment(absent, other).await.unwrap_err());
    lost(store.segments().try_collect::<Vec<_>>().await.unwrap_err());
    lost(store.delete_unreferenced([], SystemTime::now()).await.unwrap_err());
    assert!(!two.exists(), "a missing device was made anew");
}

#[test]
fn what_is_not_a_device_is_refused_and_named() {
    let (beside, root) = folder();
    let fault = |root: &std::path::Path| {
        let error = Device::open(root).unwrap_err();
        assert_eq!(error.device, root.display().to_string());
        error.fault
    };
    assert!(matches!(fault(&root), DeviceFault::Missing));
    std::fs::create_dir(&root).unwrap();
    // As a mount point whose disk is not mounted.
    assert!(matches!(fault(&root), DeviceFault::Unmarked));
    let file = beside.path().join("file");
    std::fs::write(&file, "text").unwrap();
    assert!(matches!(fault(&file), DeviceFault::NotAFolder));

    std::fs::write(root.join("thesis.odt"), "mine").unwrap();
    let error = Device::create(&root).unwrap_err();
    assert!(matches!(error.fault, DeviceFault::NotEmpty));
    std::fs::remove_file(root.join("thesis.odt")).unwrap();

    let device = Device::create(&root).unwrap();
    assert!(matches!(fault(&root), DeviceFault::InUse));
    drop(device);
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o750)).unwrap();
    assert!(matches!(fault(&root), DeviceFault::TooOpen { mode: 0o750 }));
}

#[test]
fn folders_are_private() {
    let (_folder, root) = folder();
    drop(Device::create(&root).unwrap());
    for folder in ["", "segments", "segments/7f", "blobs"] {
        let mode = std::fs::metadata(root.join(folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{folder}");
    }
}

#[tokio::test]
async fn what_a_kill_left_unfinished_is_removed() {
    let (_folder, root) = folder();
    drop(store(&[&root]));
    let (id, bytes) = bytes_of(1, 1000);
    let mut unfinished = file_of(&root, id).into_os_string();
    unfinished.push("#1");
    std::fs::write(&unfinished, &bytes).unwrap();
    let store = store(&[&root]);
    assert!(!PathBuf::from(unfinished).exists());
    assert!(!store.has_segment(id).await.unwrap());
}

#[tokio::test]
async fn only_old_segments_that_nothing_refers_to_go() {
    let (_folder, root) = folder();
    let store = store(&[&root]);
    let old: Vec<_> = (0..20).map(|name| bytes_of(name, 1000)).collect();
    for (id, bytes) in &old {
        store.put_segment(*id, bytes.clone()).await.unwrap();
        let file = File::options().write(true).open(file_of(&root, *id)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    let (young, bytes) = bytes_of(99, 1000);
    store.put_segment(young, bytes).await.unwrap();
    std::fs::write(root.join("segments/00/notes"), "not a segment").unwrap();

    let before = std::fs::metadata(file_of(&root, young)).unwrap().modified().unwrap();
    let referenced = old[..5].iter().map(|(id, _)| *id);
    let deleted = store.delete_unreferenced(referenced, before).await.unwrap();
    assert_eq!(deleted, Deleted { segments: 15, bytes: ByteCount(15_000) });
    let mut left: Vec<_> = old[..5].iter().map(|(id, _)| *id).chain([young]).collect();
    left.sort_unstable();
    assert_eq!(listed(&store).await, left);
}

#[tokio::test]
async fn blobs_are_replaced_in_place() {
    let (_first, one) = folder();
    let (_second, two) = folder();
    let store = store(&[&one, &two]);
    let name: BlobName = "stripe-map/0a1b".parse().unwrap();
    assert!(matches!(store.get_blob(&name).await, Err(StoreError::NotFound { .. })));
    for text in ["first", "second", ""] {
        store.put_blob(&name, Bytes::from(text)).await.unwrap();
        assert_eq!(store.get_blob(&name).await.unwrap(), text);
    }
    assert!([&one, &two].iter().all(|root| root.join("blobs/stripe-map/0a1b").exists()));
    let other: BlobName = "manifest/0a1b".parse().unwrap();
    store.put_blob(&other, Bytes::from_static(b"text")).await.unwrap();
    assert_eq!(store.blobs().await.unwrap(), [other, name.clone()]);
    assert!(store.delete_blob(&name).await.unwrap());
    assert!(!store.delete_blob(&name).await.unwrap());
    assert_eq!(listed(&store).await, []);
}

#[tokio::test]
async fn blobs_are_the_same_on_all_devices_after_one_was_lost_or_missed_a_write() {
    let (_first, one) = folder();
    let (_second, two) = folder();
    let names: [BlobName; 2] = ["volume/0a".parse().unwrap(), "volume/0b".parse().unwrap()];
    {
        let store = store(&[&one, &two]);
        for name in &names {
            store.put_blob(name, Bytes::from_static(b"new")).await.unwrap();
        }
    }
    std::fs::write(two.join("blobs/volume/0a"), "old").unwrap();
    std::fs::remove_file(two.join("blobs/volume/0b")).unwrap();
    store(&[&one, &two]).even_out_blobs().await.unwrap();
    let alone = store(&[&two]);
    for name in &names {
        assert_eq!(alone.get_blob(name).await.unwrap(), "new");
    }
}

#[tokio::test]
async fn devices_with_as_much_room_take_as_much() {
    let (_first, one) = folder();
    let (_second, two) = folder();
    let store = store(&[&one, &two]);
    for seed in 0..20 {
        let (id, bytes) = bytes_of(seed, 1000);
        store.put_segment(id, bytes).await.unwrap();
        assert_eq!(store.device_of_segment(id).await.unwrap(), Some(usize::from(seed % 2)));
    }
    assert_eq!(store.device_of_segment(SegmentId([0; 32])).await.unwrap(), None);
    assert_eq!(store.devices(), 2);
}

#[tokio::test]
async fn any_backend_will_do() {
    let memory = std::sync::Arc::new(InMemory::new());
    let open = || Device::open_remote("memory".into(), memory.clone());
    assert!(matches!(open().await.unwrap_err().fault, DeviceFault::Unmarked));
    let device = Device::create_remote("memory".into(), memory.clone()).await.unwrap();
    let again = Device::create_remote("memory".into(), memory.clone()).await;
    assert!(matches!(again.unwrap_err().fault, DeviceFault::NotEmpty));
    let store = Store::new(vec![device]).unwrap();
    let (id, bytes) = bytes_of(1, 1000);
    store.put_segment(id, bytes.clone()).await.unwrap();
    store.flush().await.unwrap();
    assert_eq!(store.get_segment(id).await.unwrap(), bytes);
    assert_eq!(store.space().await.unwrap()[0].free, None);
    assert_eq!(listed(&store).await, [id]);
    assert!(matches!(Store::new(vec![]), Err(StoreError::NoDevice)));
    store.release().await;
    drop(store);
    let store = Store::new(vec![open().await.unwrap()]).unwrap();
    assert_eq!(store.get_segment(id).await.unwrap(), bytes);
}

#[test]
fn a_program_that_is_just_being_started_does_not_keep_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("device");
    let device = Device::create(&root).unwrap();
    let inherited = device.inherited();
    drop(device);
    drop(Device::open(&root).unwrap());
    drop(inherited);
}

#[tokio::test]
async fn segments_move_to_a_device_with_more_room_while_they_are_read() {
    let (_folder, old) = folder();
    let small = SmallDisk::mount(48 << 20);
    let new = small.path().join("store");
    let mut ids = Vec::new();
    for name in 0..40 {
        let (id, bytes) = bytes_of(name, 200_000);
        store(&[&old]).put_segment(id, bytes).await.unwrap();
        ids.push(id);
    }
    std::fs::write(file_of(&old, ids[0]), b"damaged").unwrap();
    // The new one is looked at first.
    let both = std::sync::Arc::new(store(&[&new, &old]));
    let (reader, wanted) = (std::sync::Arc::clone(&both), ids[1..].to_vec());
    let reading = tokio::spawn(async move {
        while reader.device_of_segment(wanted[9]).await.unwrap() == Some(1) {
            for id in &wanted {
                reader.get_segment(*id).await.unwrap();
                reader.open_segment(*id).unwrap();
            }
        }
    });
    for some in ids.chunks(3) {
        both.move_segments(some, 1, 0).await.unwrap();
    }
    reading.await.unwrap();
    // What is damaged is left to the scrub.
    let left = both.segments_on(1).try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(left.iter().map(|segment| segment.id).collect::<Vec<_>>(), [ids[0]]);
    assert_eq!(both.segments_on(0).try_collect::<Vec<_>>().await.unwrap().len(), 39);
    assert_eq!(both.device_of_segment(ids[9]).await.unwrap(), Some(0));
    // One that has no room takes nothing, and nothing is lost.
    let (big, bytes) = bytes_of(99, 4 << 20);
    drop(both);
    store(&[&old]).put_segment(big, bytes.clone()).await.unwrap();
    std::fs::write(small.path().join("fill"), vec![0; 64 << 20]).ok();
    let both = store(&[&new, &old]);
    let refused = both.move_segments(&[big], 1, 0).await.unwrap_err();
    assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
    assert_eq!(both.get_segment(big).await.unwrap(), bytes);
}
