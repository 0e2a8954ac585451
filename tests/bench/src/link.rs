//! Plain TCP over a shaped link: what is left of its rate after headers and the token bucket.

use std::{
    io::{self, Write as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Figure, Wanted};
use cairn_tests::netns::{Lab, MegabitsPerSecond};

const RATE: u32 = 200;
const SENT: usize = 64 << 20;
/// Payload of a full-size frame (timestamps on) and its length on the wire.
const PAYLOAD_SHARE: f64 = 1448.0 / 1514.0;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut lab = Lab::new("bench-link")?;
    let (server, client) = (lab.host("server", 1)?, lab.host("client", 11)?);
    for host in [&server, &client] {
        host.shape(MegabitsPerSecond(RATE))?;
    }
    let address = (server.address(), 9000);
    let listener = server.enter(|| TcpListener::bind(address))?.context("listen")?;
    let took = std::thread::scope(|scope| -> Result<Duration> {
        let sender = scope.spawn(|| -> io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.write_all(&vec![0; SENT])
        });
        let mut stream = client.enter(|| TcpStream::connect(address))?.context("connect")?;
        let started = Instant::now();
        io::copy(&mut stream, &mut io::sink()).context("receive")?;
        let took = started.elapsed();
        match sender.join() {
            Ok(sent) => sent.context("send")?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(took)
    })?;
    let megabits = f64::from(u32::try_from(SENT * 8)?) / 1e6 / took.as_secs_f64();
    let possible = f64::from(RATE) * PAYLOAD_SHARE;
    Ok(vec![
        Figure::new("TCP payload over 200 Mbit/s", megabits, "Mbit/s", Wanted::Nothing),
        Figure::new("share of what headers leave", megabits / possible, "", Wanted::AtLeast(0.95)),
    ])
}
