//! Registers a raw image file into nothing and prints how fast that went.
#![expect(clippy::print_stdout, clippy::cast_precision_loss, reason = "a measuring program's output")]

use std::{fs::File, sync::Arc, sync::atomic::Ordering, time::Instant};

use cairn_array::register::{Counters, Input, RawSource, SegmentSink, register};
use cairn_core::id::SegmentId;
use tokio_util::sync::CancellationToken;

struct Nowhere;

impl SegmentSink for Nowhere {
    fn put(&mut self, _: SegmentId, _: Vec<u8>) -> anyhow::Result<()> {
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("usage: register_bench FILE"))?;
    let source = RawSource::new(File::open(path)?, None);
    let input = Input { source: Box::new(source), any_content: true };
    let counters = Arc::new(Counters::default());
    let started = Instant::now();
    let done = register(input, None, &mut Nowhere, &counters, &CancellationToken::new())?;
    let seconds = started.elapsed().as_secs_f64();
    let data = counters.data.load(Ordering::Relaxed);
    println!(
        "{seconds:.2} s: {} bytes, {data} of data, {} deduplicated, {} sealed, {} segments; {:.2} GB/s of the image, {:.2} GB/s of data",
        done.size, counters.deduplicated.load(Ordering::Relaxed), counters.stored.load(Ordering::Relaxed),
        done.data.len(), done.size.0 as f64 / seconds / 1e9, data as f64 / seconds / 1e9,
    );
    Ok(())
}
