//! A raw disk image on its way to the server, without its holes and zeros.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use bytes::Bytes;
use cairn_core::{
    sparse::Encoder,
    units::{BLOCK_BYTES, ByteCount},
};
use futures::Stream;
use rustix::{fs::SeekFrom, io::Errno};
use tokio::sync::mpsc;

/// Bytes read at once.
const CHUNK_BYTES: u64 = 1 << 20;
/// Room for a chunk and, mostly, the heads of its records.
const OUT_BYTES: usize = (1 << 20) + (4 << 10);
/// Chunks that wait for the network.
const QUEUE: usize = 8;

/// The file as a sparse stream. Reading it is blocking work, so a thread of its own does it.
pub(super) fn stream(path: PathBuf) -> impl Stream<Item = io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    // When the receiver is gone there is nobody to tell an error to.
    drop(tokio::task::spawn_blocking(move || {
        if let Err(error) = send(&path, &sender) {
            drop(sender.blocking_send(Err(io::Error::other(error))));
        }
    }));
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    })
}

fn send(path: &Path, to: &mpsc::Sender<io::Result<Bytes>>) -> anyhow::Result<()> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let read = || format!("read {}", path.display());
    let size = file.seek(io::SeekFrom::End(0)).with_context(read)?;
    let mut out = Vec::with_capacity(OUT_BYTES);
    let mut encoder = Encoder::new(ByteCount(size), &mut out);
    let mut position = 0;
    let mut chunk = Vec::new();
    while let Some((start, end)) = next_data(&file, position, size).with_context(read)? {
        encoder.skip(ByteCount(start - position)).context("encode the image")?;
        position = start;
        file.seek(io::SeekFrom::Start(start)).with_context(read)?;
        while position < end {
            let length =
                usize::try_from((end - position).min(CHUNK_BYTES)).context("count bytes")?;
            chunk.resize(length, 0);
            file.read_exact(&mut chunk).with_context(read)?;
            encoder.push(&chunk, &mut out).context("encode the image")?;
            position += length as u64;
            if !out.is_empty()
                && to
                    .blocking_send(Ok(
                        std::mem::replace(&mut out, Vec::with_capacity(OUT_BYTES)).into()
                    ))
                    .is_err()
            {
                return Ok(());
            }
        }
    }
    encoder.skip(ByteCount(size - position)).context("encode the image")?;
    encoder.finish(&mut out).context("encode the image")?;
    // A receiver that is gone needs no end.
    drop(to.blocking_send(Ok(out.into())));
    Ok(())
}

/// The next stretch that is not a hole, in whole blocks; a device without holes is one stretch.
fn next_data(file: &File, from: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= size {
        return Ok(None);
    }
    let block = BLOCK_BYTES as u64;
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start.max(from) / block * block,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((from, size))),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start.max(from), end.next_multiple_of(block).min(size))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use cairn_core::sparse::{Decoder, Event};
    use futures::TryStreamExt as _;

    use super::*;

    #[tokio::test]
    async fn holes_and_zeros_are_not_sent_and_the_rest_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("os.img");
        let file = File::create(&path).unwrap();
        // Data at an odd place far out, zeros that are no hole, and a last block that is not whole.
        let size = (64 << 20) + 100;
        file.set_len(size).unwrap();
        let mut wanted = vec![0_u8; usize::try_from(size).unwrap()];
        for (at, bytes) in [
            (0, vec![1; 10]),
            (5_000_000, vec![2; 9000]),
            (1 << 20, vec![0; 8192]),
            (size - 3, vec![3; 3]),
        ] {
            file.write_all_at(&bytes, at).unwrap();
            let at = usize::try_from(at).unwrap();
            wanted[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        drop(file);
        let sent: Vec<Bytes> = stream(path).try_collect().await.unwrap();
        let sent = sent.concat();
        assert!(sent.len() < 40_000, "{}", sent.len());
        let mut decoder = Decoder::new(ByteCount(1 << 30));
        let mut image = Vec::new();
        let mut rest = &sent[..];
        while let Some(event) = decoder.next(&mut rest).unwrap() {
            match event {
                Event::Start { total } => image.resize(usize::try_from(total.0).unwrap(), 0),
                Event::Data { offset, bytes } => {
                    let at = usize::try_from(offset).unwrap();
                    image[at..at + bytes.len()].copy_from_slice(bytes);
                }
                Event::End => {}
            }
        }
        decoder.finish().unwrap();
        assert!(image == wanted);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_breaks_the_stream() {
        let sent: io::Result<Vec<Bytes>> = stream("/nowhere/os.img".into()).try_collect().await;
        assert!(sent.is_err());
    }
}
