//! The DSF as async tasks see it.

use futures::future::join_all;

use super::*;

fn started(place: &Place, capacity: u32) -> (DsfOwner, DsfHandle) {
    DsfOwner::start(place.create(capacity)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_put_and_get_at_once() {
    let place = Place::new();
    let (owner, handle) = started(&place, 40);
    let tasks = (0..32).map(|name| {
        let handle = handle.clone();
        async move {
            let stored = handle.put(id(name), bytes_of(name), SegmentClass::Data).await;
            assert_eq!(stored.unwrap(), Stored::New);
            assert_eq!(handle.get(id(name)).await.unwrap(), bytes_of(name));
        }
    });
    join_all(tasks).await;
    assert_eq!(handle.stats().used, SlotCount(32));
    assert_eq!(handle.list().len(), 32);
    assert_eq!(handle.remove((0..8).map(id).collect()).await.unwrap(), SlotCount(8));
    assert!(matches!(handle.get(id(1)).await, Err(GetError::NotHeld(_))));

    let resized = handle.resize(SlotCount(20)).await.unwrap();
    assert_eq!(resized.evicted.len(), 4);
    let evicted = handle.evict(SlotCount(2), SegmentClass::Data).await.unwrap();
    assert_eq!(evicted, []);
    owner.stop().await;
    let refused = handle.put(id(1), bytes_of(1), SegmentClass::Data).await;
    assert!(matches!(refused, Err(PutError::Closed)));
    drop(handle);
    assert_eq!(place.open().reader().stats().used, SlotCount(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_never_see_a_slot_that_is_being_refilled() {
    let place = Place::new();
    let (owner, handle) = started(&place, 2);
    let writer = async {
        for round in 0..200 {
            let name = round % 3;
            match handle.put(id(name), bytes_of(name), SegmentClass::Data).await {
                Ok(_) | Err(PutError::NoFreeSlot { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            handle.remove(vec![id((round + 1) % 3)]).await.unwrap();
        }
    };
    let reader = async {
        for round in 0..600 {
            let name = round % 3;
            match handle.get(id(name)).await {
                Ok(bytes) => assert_eq!(bytes, bytes_of(name)),
                Err(GetError::NotHeld(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::join!(writer, reader);
    owner.stop().await;
}

#[tokio::test]
async fn bytes_that_are_not_the_segment_are_refused() {
    let place = Place::new();
    let (owner, handle) = started(&place, 2);
    let refused = handle.put(id(1), bytes_of(2), SegmentClass::Data).await;
    assert!(matches!(refused, Err(PutError::Check(CheckError::WrongId { .. }))));
    assert_eq!(handle.stats().used, SlotCount(0));
    owner.stop().await;
}

#[tokio::test]
async fn a_scrub_step_writes_damaged_headers_anew() {
    use std::os::unix::fs::FileExt;

    let place = Place::new();
    let (owner, handle) = started(&place, 2);
    handle.put(id(1), bytes_of(1), SegmentClass::Data).await.unwrap();
    let file = std::fs::File::options().write(true).open(&place.path).unwrap();
    file.write_all_at(b"rot", SlotIndex(0).header_at()).unwrap();
    assert_eq!(handle.scrub_step(4).await.unwrap().bad.len(), 1);
    assert_eq!(handle.scrub_step(4).await.unwrap().bad.len(), 0);
    owner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_does_not_wait_for_the_writer() {
    let place = Place::new();
    let (owner, handle) = started(&place, 300);
    handle.put(id(1), bytes_of(1), SegmentClass::Data).await.unwrap();
    // The writer's queue is full of puts; a read is answered all the same, before they are through.
    let puts: Vec<_> = (100..200)
        .map(|name| {
            let handle = handle.clone();
            tokio::spawn(
                async move { handle.put(id(name), bytes_of(name), SegmentClass::Cached).await },
            )
        })
        .collect();
    assert_eq!(handle.get(id(1)).await.unwrap(), bytes_of(1));
    for put in puts {
        assert_eq!(put.await.unwrap().unwrap(), Stored::New);
    }
    owner.stop().await;
}
