//! What a disk, its owner or another process can do to a DSF.

use std::{
    fs::{File, Permissions},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    sync::Arc,
};

use super::{record::Recorder, *};
use crate::test_disk::SmallDisk;

fn open_fault(path: &Path) -> OpenFault {
    Dsf::open(path).unwrap_err().fault
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

#[test]
fn is_private() {
    let place = Place::new();
    drop(place.create(2));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&place.path), 0o600);
    assert_eq!(mode(place.path.parent().unwrap()), 0o700);
}

#[test]
fn refuses_a_file_that_others_can_read() {
    let place = Place::new();
    drop(place.create(2));
    std::fs::set_permissions(&place.path, Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(open_fault(&place.path), OpenFault::TooOpen { mode: 0o640, allowed: 0o600 }));

    std::fs::set_permissions(&place.path, Permissions::from_mode(0o600)).unwrap();
    let folder = place.path.parent().unwrap();
    std::fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(open_fault(&place.path), OpenFault::FolderTooOpen { mode: 0o755 }));
}

#[test]
fn refuses_links_folders_and_nothing() {
    let place = Place::new();
    assert!(matches!(open_fault(&place.path), OpenFault::Missing));
    drop(place.create(2));
    let folder = place.path.parent().unwrap();
    assert!(matches!(open_fault(&folder.join("other")), OpenFault::Missing));

    let link = folder.join("link");
    symlink(&place.path, &link).unwrap();
    assert!(matches!(open_fault(&link), OpenFault::Symlink));
    let beside = folder.parent().unwrap().join("folder-link");
    symlink(folder, &beside).unwrap();
    assert!(matches!(open_fault(&beside.join("segments.dsf")), OpenFault::FolderNotAFolder));
    std::fs::create_dir(folder.join("sub")).unwrap();
    assert!(matches!(open_fault(&folder.join("sub")), OpenFault::NotAFile));
}

#[test]
fn two_cannot_open_it() {
    let place = Place::new();
    let dsf = place.create(2);
    assert!(matches!(open_fault(&place.path), OpenFault::InUse));
    let again = Dsf::create(&place.path, DsfId([8; 16]), SlotCount(1)).unwrap_err();
    assert!(matches!(again.fault, OpenFault::Exists));
    let reader = dsf.reader();
    drop(dsf);
    // The reader still uses the file.
    assert!(matches!(open_fault(&place.path), OpenFault::InUse));
    drop(reader);
    assert_eq!(place.open().id(), DsfId([7; 16]));
}

#[test]
fn what_a_crash_left_of_a_creation_is_in_nobodys_way() {
    let place = Place::new();
    drop(place.create(1));
    std::fs::rename(&place.path, place.path.with_extension("dsf.new")).unwrap();
    assert!(matches!(open_fault(&place.path), OpenFault::Missing));
    let dsf = place.create(3);
    assert_eq!(dsf.reader().stats().capacity, SlotCount(3));
}

#[test]
fn a_program_that_is_just_being_started_does_not_keep_the_lock() {
    let place = Place::new();
    let dsf = place.create(1);
    let inherited = dsf.shared.disk.file.try_clone().unwrap();
    drop(dsf);
    drop(place.open());
    drop(inherited);
}

#[test]
fn one_rotten_superblock_is_survived_and_two_are_reported() {
    let place = Place::new();
    let mut dsf = place.create(2);
    put_data(&mut dsf, [1]);
    drop(dsf);
    overwrite(&place.path, 0, &[0xff; 4096]);
    assert!(place.open().reader().contains(id(1)));
    overwrite(&place.path, layout::SUPERBLOCK_COPY_AT, &[0xff; 4096]);
    assert!(matches!(open_fault(&place.path), OpenFault::Superblock(_)));
}

#[test]
fn a_torn_header_is_a_free_slot() {
    let place = Place::new();
    let mut dsf = place.create(2);
    put_data(&mut dsf, [1, 2]);
    drop(dsf);
    overwrite(&place.path, SlotIndex(0).header_at() + 30, b"rot");
    let mut dsf = place.open();
    assert_eq!(dsf.reader().stats().used, SlotCount(1));
    put_data(&mut dsf, [1]);
    assert_eq!(dsf.reader().get(id(1)).unwrap(), bytes_of(1));
}

#[test]
fn what_a_newer_program_wrote_is_not_taken_for_free() {
    let place = Place::new();
    let mut dsf = place.create(1);
    put_data(&mut dsf, [1]);
    let mut page = dsf.shared.table().get(id(1)).unwrap().header.encode();
    drop(dsf);
    page[8] = 2;
    let checksum = crc_fast::crc32_iscsi(&page[..508]);
    page[508..512].copy_from_slice(&checksum.to_le_bytes());
    overwrite(&place.path, SlotIndex(0).header_at(), &page);
    assert!(matches!(open_fault(&place.path), OpenFault::Slot { slot: SlotIndex(0), .. }));
}

#[test]
fn rot_is_found_by_scrub_and_by_get_and_a_put_repairs_it() {
    let place = Place::new();
    let mut dsf = place.create(4);
    put_data(&mut dsf, [1, 2, 4]);
    let reader = dsf.reader();
    let slot = dsf.shared.table().get(id(2)).unwrap().header.slot;
    overwrite(&place.path, slot.payload_at(), b"rot");

    let (first, rest) = (reader.scrub_step(1), reader.scrub_step(9));
    assert_eq!((first.checked, first.bad.len(), first.round_complete), (1, 0, false));
    assert_eq!((rest.checked, rest.bad.len(), rest.round_complete), (2, 1, true));
    let bad = &rest.bad[0];
    assert_eq!((bad.id, bad.slot, bad.class), (id(2), slot, SegmentClass::Data));
    assert!(matches!(bad.fault, SlotFault::Payload(PayloadFault::Checksum)));
    let error = reader.get(id(2)).unwrap_err();
    assert!(matches!(error, GetError::Rotten { id: bad, .. } if bad == id(2)));

    assert_eq!(dsf.put(&[put(2, SegmentClass::Data)]).pop().unwrap().unwrap(), Stored::New);
    assert_eq!(reader.get(id(2)).unwrap(), bytes_of(2));
    assert!(reader.scrub_step(9).bad.is_empty());
}

#[test]
fn a_damaged_header_is_found_by_scrub_and_written_anew() {
    let place = Place::new();
    let mut dsf = place.create(2);
    put_data(&mut dsf, [1]);
    overwrite(&place.path, SlotIndex(0).header_at() + 100, b"rot");
    let scrubbed = dsf.reader().scrub_step(9);
    assert!(matches!(scrubbed.bad[0].fault, SlotFault::Header));
    dsf.heal_headers(&[scrubbed.bad[0].id]).unwrap();
    assert!(dsf.reader().scrub_step(9).bad.is_empty());
    drop(dsf);
    assert_eq!(place.open().reader().get(id(1)).unwrap(), bytes_of(1));
}

#[test]
fn a_rotten_segment_is_dropped_and_named_when_shrinking_would_move_it() {
    let place = Place::new();
    let mut dsf = place.create(4);
    put_data(&mut dsf, [1, 2, 4]);
    dsf.remove(&[id(1), id(2)]).unwrap();
    overwrite(&place.path, SlotIndex(2).payload_at(), b"rot");
    let resized = dsf.resize(SlotCount(1)).unwrap();
    assert_eq!((resized.moved, resized.evicted.len()), (0, 0));
    assert_eq!(resized.rotten[0].id, id(4));
}

#[test]
fn after_a_failed_sync_nothing_is_written_any_more() {
    let place = Place::new();
    let mut dsf = place.create(4);
    put_data(&mut dsf, [1]);
    let recorder = Recorder::failing_after(1);
    Arc::get_mut(&mut dsf.shared).unwrap().disk.recorder = Some(recorder.clone());
    // The payload is synced, the header is not.
    let stored = dsf.put(&[put(2, SegmentClass::Data)]).pop().unwrap();
    assert!(matches!(stored, Err(PutError::Faulted(_))));
    let written = recorder.ops().len();

    let refused = dsf.put(&[put(4, SegmentClass::Data)]).pop().unwrap();
    assert!(matches!(refused, Err(PutError::Faulted(_))));
    assert!(dsf.remove(&[id(1)]).is_err());
    assert!(dsf.resize(SlotCount(1)).is_err());
    assert_eq!(recorder.ops().len(), written);
    // What was there can still be read.
    assert!(!dsf.reader().contains(id(2)));
    assert_eq!(dsf.reader().get(id(1)).unwrap(), bytes_of(1));
}

#[test]
fn a_full_disk_is_told_and_nothing_else_suffers() {
    let disk = SmallDisk::mount(10 << 20);
    let path = disk.path().join("store").join("segments.dsf");
    let mut dsf = Dsf::create(&path, DsfId([7; 16]), SlotCount(8)).unwrap();
    // Numbers 3, 19 and 35 are of 4 MiB: two fit.
    let big = [3, 19, 35].map(|name| put(name, SegmentClass::Data));
    let answers = dsf.put(&big);
    assert!(matches!(answers[..], [Ok(Stored::New), Ok(Stored::New), Err(PutError::Full)]));
    let stats = dsf.reader().stats();
    assert_eq!((stats.used, dsf.shared.table().free().len()), (SlotCount(2), 6));
    // Something small still fits, and everything survives.
    put_data(&mut dsf, [1]);
    drop(dsf);
    let mut dsf = Dsf::open(&path).unwrap();
    for name in [1, 3, 19] {
        assert_eq!(dsf.reader().get(id(name)).unwrap(), bytes_of(name));
    }
    // Removing gives the space back at once.
    dsf.remove(&[id(3)]).unwrap();
    put_data(&mut dsf, [35]);
    assert_eq!(dsf.reader().get(id(35)).unwrap(), bytes_of(35));
}

#[test]
fn shrinking_on_a_full_disk_gives_up_what_it_cannot_copy() {
    let disk = SmallDisk::mount(10 << 20);
    let path = disk.path().join("store").join("segments.dsf");
    let mut dsf = Dsf::create(&path, DsfId([7; 16]), SlotCount(3)).unwrap();
    put_data(&mut dsf, [1]);
    let stored = dsf.put(&[put(3, SegmentClass::Parity), put(19, SegmentClass::Data)]);
    assert!(stored.iter().all(Result::is_ok));
    dsf.remove(&[id(1)]).unwrap();
    // Slots 1 and 2 are used, slot 0 is free, and the disk has no room for a copy.
    std::fs::write(disk.path().join("ballast"), vec![1; 1 << 20]).unwrap();
    let resized = dsf.resize(SlotCount(2)).unwrap();
    assert_eq!((resized.evicted.len(), resized.moved), (1, 1));
    assert_eq!((resized.evicted[0].id, resized.evicted[0].class), (id(3), SegmentClass::Parity));
    assert_eq!(dsf.reader().get(id(19)).unwrap(), bytes_of(19));
}

#[test]
fn neither_creating_nor_growing_is_done_by_half_on_a_full_disk() {
    let disk = SmallDisk::mount(1 << 20);
    let path = disk.path().join("store").join("segments.dsf");
    let mut dsf = Dsf::create(&path, DsfId([7; 16]), SlotCount(8)).unwrap();
    put_data(&mut dsf, [1]);
    let length = std::fs::metadata(&path).unwrap().len();
    assert!(matches!(dsf.resize(SlotCount(2000)), Err(ResizeError::Full)));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
    assert_eq!(dsf.reader().stats().capacity, SlotCount(8));
    put_data(&mut dsf, [2]);

    let other = disk.path().join("store").join("other.dsf");
    let error = Dsf::create(&other, DsfId([7; 16]), SlotCount(2000)).unwrap_err();
    assert!(matches!(error.fault, OpenFault::Full));
    assert_eq!(std::fs::read_dir(disk.path().join("store")).unwrap().count(), 1);
}

#[test]
fn what_is_free_takes_no_space() {
    let place = Place::new();
    let mut dsf = place.create(4);
    let empty = place.disk_bytes();
    put_data(&mut dsf, [3, 19]);
    assert!(place.disk_bytes() >= empty + (8 << 20));
    dsf.remove(&[id(3), id(19)]).unwrap();
    assert!(place.disk_bytes() <= empty + (64 << 10));
    // A put that was killed before its header left a payload behind; opening takes it away.
    drop(dsf);
    overwrite(&place.path, SlotIndex(1).payload_at(), &bytes_of(3));
    drop(place.open());
    assert!(place.disk_bytes() <= empty + (64 << 10));
}
