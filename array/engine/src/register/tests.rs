use std::sync::Arc;

use bytes::Bytes;
use cairn_core::{map::Origin, units::BLOCK_BYTES};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    frame::{FrameReader, OpenSegment},
    map_reader::PriorVersion,
    testing::{Memory, Version, input, noise, version},
};

/// Reads an image back the slow, obvious way.
fn read_back(version: &Version, store: &Memory) -> Vec<u8> {
    let mut image = vec![0; usize::try_from(version.public.size.0).unwrap()];
    let fetch = |entry: &SegmentEntry| Ok(Bytes::from(store.0[&entry.id].clone()));
    let prior = PriorVersion { public: &version.public, secret: &version.secret, fetch: &fetch };
    let mut frames = FrameReader::new().unwrap();
    prior
        .for_each_page(|page| {
            for (extent, hashes) in page.data() {
                let Origin::Segment { segment, frame, block } = extent.origin else {
                    unreachable!()
                };
                let entry = &version.public.data[segment.0 as usize];
                let key = &version.secret.data_keys[segment.0 as usize];
                let opened = OpenSegment::new(&store.0[&entry.id], key).unwrap();
                let plain = frames.read(&opened, frame).unwrap();
                for (number, hash) in hashes.iter().enumerate() {
                    let from = (usize::from(block) + number) * BLOCK_BYTES;
                    let bytes = &plain[from..from + BLOCK_BYTES];
                    assert_eq!(cairn_core::id::BlockHash::of(bytes), *hash);
                    let to =
                        usize::try_from(extent.first.byte_offset()).unwrap() + number * BLOCK_BYTES;
                    let end = (to + BLOCK_BYTES).min(image.len());
                    image[to..end].copy_from_slice(&bytes[..end - to]);
                }
            }
            Ok(())
        })
        .unwrap();
    image
}

/// An image of blocks told by small numbers: 0 is zero, equal numbers are equal blocks.
fn image_of(blocks: &[u8], tail: usize) -> Vec<u8> {
    let mut image = Vec::new();
    for (number, kind) in blocks.iter().enumerate() {
        match kind {
            0 => image.extend_from_slice(&[0; BLOCK_BYTES]),
            1..=20 => image.extend_from_slice(&[*kind; BLOCK_BYTES]),
            _ => {
                let seed = sha256(&[number.to_le_bytes(), [*kind; 8]].concat());
                image.extend(seed.iter().cycle().take(BLOCK_BYTES));
            }
        }
    }
    image.extend(std::iter::repeat_n(7, tail));
    image
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_goes_in_comes_out(
        first in vec(any::<u8>(), 1..600), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        tail in 1_usize..4096,
    ) {
        let mut store = Memory::default();
        let image = image_of(&first, tail);
        let (one, _) = version(&image, None, &mut store);
        prop_assert!(read_back(&one, &store) == image);

        let mut second = first;
        for (at, kind) in &changes {
            *at.get_mut(&mut second) = *kind;
        }
        let image = image_of(&second, tail);
        let (two, counters) = version(&image, Some(&one), &mut store);
        prop_assert!(read_back(&two, &store) == image);
        // What is new cannot be more than what was changed.
        let fresh = counters.data.into_inner() - counters.deduplicated.into_inner();
        prop_assert!(fresh <= changes.len() as u64 * BLOCK_BYTES as u64);
    }
}

#[test]
fn equal_blocks_are_stored_once_and_zeros_never() {
    let mut store = Memory::default();
    let (one, counters) = version(&image_of(&[3; 5000], 0), None, &mut store);
    assert_eq!(counters.data.into_inner() - counters.deduplicated.into_inner(), BLOCK_BYTES as u64);
    assert_eq!(one.public.data.len(), 1);
    assert!(one.public.data[0].bytes < 200);
    let (none, counters) = version(&image_of(&[0; 5000], 0), None, &mut store);
    assert_eq!(
        (counters.data.into_inner(), none.public.data.len(), none.public.map.len()),
        (0, 0, 0)
    );
    assert_eq!(none.public.size, ByteCount(5000 * 4096));
}

#[test]
fn a_size_that_is_not_the_declared_one_is_told_apart() {
    let run = |bytes: &[u8], declared| {
        let source = RawSource::new(std::io::Cursor::new(bytes.to_vec()), declared);
        let input = Input { source: Box::new(source), any_content: true };
        let counters = Arc::new(Counters::default());
        let error =
            register(input, None, &mut Memory::default(), &counters, &CancellationToken::new())
                .unwrap_err();
        error.downcast::<SourceError>().unwrap()
    };
    let bytes = vec![1; 3 << 20];
    assert!(matches!(
        run(&bytes, Some(ByteCount(4 << 20))),
        SourceError::Truncated { got: ByteCount(0x30_0000), .. }
    ));
    assert!(matches!(run(&bytes, Some(ByteCount(2 << 20))), SourceError::TooLong { .. }));
    assert!(matches!(run(&[], None), SourceError::Empty));
}

#[test]
fn a_text_file_is_no_image() {
    let source = RawSource::new(std::io::Cursor::new(b"hello ".repeat(10_000)), None);
    let input = Input { source: Box::new(source), any_content: false };
    let counters = Arc::new(Counters::default());
    let error = register(input, None, &mut Memory::default(), &counters, &CancellationToken::new())
        .unwrap_err();
    assert!(matches!(error.downcast::<SourceError>().unwrap(), SourceError::NotAnImage));
}

struct FullDisk;

impl SegmentSink for FullDisk {
    fn put(&mut self, _: CheckedSegment) -> anyhow::Result<()> {
        Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into())
    }
}

#[test]
fn a_sink_that_fails_ends_the_run_with_its_own_error() {
    let image: Vec<u8> = (0..60_000_u32)
        .flat_map(|block| image_of(&[250], 0).into_iter().map(move |b| b ^ block.to_le_bytes()[0]))
        .take(64 << 20)
        .collect();
    let counters = Arc::new(Counters::default());
    let error = register(input(&image), None, &mut FullDisk, &counters, &CancellationToken::new())
        .unwrap_err();
    assert!(
        error.chain().any(|cause| cause.downcast_ref::<std::io::Error>().is_some()),
        "{error:#}"
    );
}

/// What free space looks like on a real ext4: files are written, then deleted, so that free blocks hold old bytes.
#[test]
fn blocks_that_ext4_calls_free_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, path) = (folder.path().join("tree"), folder.path().join("fs.img"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("kept"), noise(500, 1)).unwrap();
    std::fs::write(tree.join("deleted"), noise(3000, 2)).unwrap();
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        let status = std::process::Command::new(program).args(arguments).output().unwrap();
        assert!(status.status.success(), "{program}: {}", String::from_utf8_lossy(&status.stderr));
    };
    run("mkfs.ext4", &["-q".as_ref(), "-d".as_ref(), tree.as_ref(), path.as_ref(), "64M".as_ref()]);
    run("debugfs", &["-w".as_ref(), "-R".as_ref(), "rm deleted".as_ref(), path.as_ref()]);
    let image = std::fs::read(&path).unwrap();
    let mut store = Memory::default();
    let (version, counters) = version(&image, None, &mut store);
    let free = counters.free.into_inner();
    assert!(free >= 2900 * 4096, "{free} bytes were seen to be free");
    // What is used reads back; what is free reads as zeros, and e2fsck has nothing to complain about.
    let back = read_back(&version, &store);
    assert!(back != image);
    std::fs::write(&path, back).unwrap();
    run("e2fsck", &["-fn".as_ref(), path.as_ref()]);
    run("debugfs", &["-R".as_ref(), "dump kept /dev/null".as_ref(), path.as_ref()]);
}

#[test]
fn a_sparse_stream_registers_as_the_bytes_it_stands_for() {
    let image = image_of(&[0, 0, 30, 31, 0, 0, 40, 0], 100);
    let mut stream = Vec::new();
    let mut encoder = cairn_core::sparse::Encoder::new(ByteCount(image.len() as u64), &mut stream);
    encoder.push(&image, &mut stream).unwrap();
    encoder.finish(&mut stream).unwrap();
    let sparse = |stream: &[u8]| {
        let source = SparseSource::open(std::io::Cursor::new(stream.to_vec()))?;
        let input = Input { source: Box::new(source), any_content: true };
        let counters = Arc::new(Counters::default());
        let done =
            register(input, None, &mut Memory::default(), &counters, &CancellationToken::new());
        done.map_err(|error| error.downcast::<SourceError>().unwrap())
    };
    let counters = Arc::new(Counters::default());
    let raw =
        register(input(&image), None, &mut Memory::default(), &counters, &CancellationToken::new())
            .unwrap();
    let done = sparse(&stream).unwrap();
    assert_eq!(
        (done.size, done.content, done.data_blocks),
        (raw.size, raw.content, raw.data_blocks)
    );
    assert!(matches!(sparse(&stream[..stream.len() - 1]), Err(SourceError::Malformed(_))));
    assert!(matches!(sparse(b"no such stream"), Err(SourceError::Malformed(_))));
}
