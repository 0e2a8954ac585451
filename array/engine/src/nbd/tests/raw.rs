//! Clients that keep to the protocol to the byte, and those that do not.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, runtime::Runtime};
use tokio_util::sync::CancellationToken;

use super::{
    super::{Export, ExportError, Exports, Flushed, StatusRun, Visitor, serve},
    Lab, MIB, request,
};
use crate::volume::Change;

/// A client that does not keep to the protocol, past the handshake.
fn rude(lab: &Lab) -> TcpStream {
    past_handshake(lab.port())
}

fn past_handshake(port: u16) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).unwrap();
    socket.write_all(&[0, 0, 0, 3]).unwrap();
    socket.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk").unwrap();
    let mut export = [0; 10];
    socket.read_exact(&mut export).unwrap();
    assert_eq!(u64::from_be_bytes(export[..8].try_into().unwrap()), 64 * MIB);
    socket
}

fn simple_reply(socket: &mut TcpStream) -> (u64, u32) {
    let mut reply = [0; 16];
    socket.read_exact(&mut reply).unwrap();
    let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
    (u64::from_be_bytes(reply[8..].try_into().unwrap()), error)
}

#[test]
fn absurd_requests_get_errors_and_the_connection_goes_on() {
    let lab = Lab::new(64 * MIB, 8 * MIB);
    let mut socket = rude(&lab);
    for (command, offset, length, error) in [
        (99, 0, 0, 22),
        (0, 0, u32::MAX, 22),
        (0, u64::MAX, 4096, 22),
        (4, 64 * MIB, 4096, 28),
        (7, 0, 4096, 22),
    ] {
        socket.write_all(&request(command, 5, offset, length)).unwrap();
        assert_eq!(simple_reply(&mut socket), (5, error), "command {command}");
    }
    // A payload that is too long is passed over, to the byte.
    let long = 33 << 20;
    socket.write_all(&request(1, 6, 0, long)).unwrap();
    let mut rest = socket.try_clone().unwrap();
    let sender = std::thread::spawn(move || rest.write_all(&vec![0x25; long as usize]).unwrap());
    assert_eq!(simple_reply(&mut socket), (6, 22));
    sender.join().unwrap();
    // Requests that come a byte at a time, and in one piece with others.
    let write = [request(1, 7, 0, 4096), vec![9; 4096]].concat();
    for byte in &write {
        socket.write_all(&[*byte]).unwrap();
    }
    assert_eq!(simple_reply(&mut socket), (7, 0));
    let many =
        [write, request(0, 8, 4095, 2), request(3, 9, 0, 0), request(0, 10, 4096, 1)].concat();
    socket.write_all(&many).unwrap();
    assert_eq!(simple_reply(&mut socket), (7, 0));
    assert_eq!(simple_reply(&mut socket), (8, 0));
    let mut two = [1; 2];
    socket.read_exact(&mut two).unwrap();
    assert_eq!(two, [9, 0]);
    let mut cookies = BTreeSet::new();
    for _ in 0..2 {
        let (cookie, error) = simple_reply(&mut socket);
        assert_eq!(error, 0);
        if cookie == 10 {
            socket.read_exact(&mut two[..1]).unwrap();
        }
        cookies.insert(cookie);
    }
    assert_eq!(cookies, [9, 10].into());
    socket.write_all(&[0; 28]).unwrap();
    assert_eq!(socket.read(&mut two).unwrap(), 0, "garbage ends a connection");
}

/// A disk that is durable when the test says so, and broken from half of it on.
#[derive(Default)]
struct Held {
    flushes: Mutex<Vec<Flushed>>,
    /// Offsets and lengths.
    reads: Mutex<Vec<(u64, usize)>>,
}

impl Export for Held {
    fn read_only(&self) -> bool {
        false
    }

    fn size(&self) -> u64 {
        64 * MIB
    }

    fn read_now(&self, _: u64, _: &mut [u8]) -> Result<bool, ExportError> {
        Ok(true)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ExportError> {
        self.reads.lock().unwrap().push((offset, into.len()));
        if offset < 32 * MIB { Ok(()) } else { Err(ExportError::Io) }
    }

    fn change(&self, _: &[Change<'_>]) -> Result<(), ExportError> {
        Ok(())
    }

    fn flush(&self, done: Flushed) {
        self.flushes.lock().unwrap().push(done);
    }

    fn status(&self, _: u64, _: u32, _: usize) -> Vec<StatusRun> {
        Vec::new()
    }
}

struct OnlyHeld(Arc<Held>);

impl Exports for OnlyHeld {
    fn names(&self, _: Visitor) -> Vec<String> {
        vec!["disk".into()]
    }

    fn find(&self, _: &str, _: Visitor) -> Option<Arc<dyn Export>> {
        Some(Arc::clone(&self.0) as _)
    }
}

/// Serves such a disk while `client` talks to it.
fn with_held(client: impl FnOnce(&Held, &mut TcpStream)) {
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (held, stop) = (Arc::new(Held::default()), CancellationToken::new());
    let task =
        runtime.spawn(serve(listener, Arc::new(OnlyHeld(Arc::clone(&held))), None, stop.clone()));
    client(&held, &mut past_handshake(address.port()));
    stop.cancel();
    runtime.block_on(task).unwrap().unwrap();
}

#[test]
fn flushes_and_forced_writes_are_answered_once_they_are_durable_and_not_before() {
    with_held(|held, socket| {
        let mut forced = request(1, 1, 0, 4096);
        // FUA.
        forced[5] = 1;
        let all = [forced, vec![9; 4096], request(3, 2, 0, 0), request(0, 3, 0, 4096)].concat();
        socket.write_all(&all).unwrap();
        assert_eq!(simple_reply(socket), (3, 0));
        socket.read_exact(&mut [0; 4096]).unwrap();
        let mut flushes = std::mem::take(&mut *held.flushes.lock().unwrap());
        assert_eq!(flushes.len(), 2);
        flushes.remove(1)(Ok(()));
        assert_eq!(simple_reply(socket), (2, 0));
        flushes.remove(0)(Err(ExportError::Io));
        assert_eq!(simple_reply(socket), (1, 5));
    });
}

#[test]
fn what_is_to_be_cached_is_read_before_the_answer_and_no_more_than_a_read_may_ask_for() {
    with_held(|held, socket| {
        let step = usize::try_from(MIB).unwrap();
        socket.write_all(&request(5, 1, 4096, (2 << 20) + 5)).unwrap();
        assert_eq!(simple_reply(socket), (1, 0));
        let reads = std::mem::take(&mut *held.reads.lock().unwrap());
        assert_eq!(reads, [(4096, step), (MIB + 4096, step), (2 * MIB + 4096, 5)]);
        socket.write_all(&request(5, 2, 0, 64 << 20)).unwrap();
        assert_eq!(simple_reply(socket), (2, 0));
        assert_eq!(std::mem::take(&mut *held.reads.lock().unwrap()).len(), 32);
        // What cannot be read is told now.
        socket.write_all(&request(5, 3, 31 * MIB, 4 << 20)).unwrap();
        assert_eq!(simple_reply(socket), (3, 5));
        assert_eq!(held.reads.lock().unwrap().len(), 2);
    });
}

#[test]
fn a_client_that_takes_no_replies_holds_up_nobody_else() {
    let mut lab = Lab::new(64 * MIB, 8 * MIB);
    let mut stuck = rude(&lab);
    stuck.set_nonblocking(true).unwrap();
    let reads: Vec<u8> = (0..2000).flat_map(|cookie| request(0, cookie, 0, 32 << 20)).collect();
    // As much as goes in.
    assert!(stuck.write(&reads).unwrap() > 0);
    let mut other = rude(&lab);
    other
        .write_all(&[request(1, 1, 0, 4096), vec![9; 4096], request(3, 2, 0, 0)].concat())
        .unwrap();
    assert_eq!(simple_reply(&mut other), (1, 0));
    assert_eq!(simple_reply(&mut other), (2, 0));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 512 << 10, "60 GiB of replies took {kib} KiB");
    // Nor the end of the server: what it asked for is not read for nobody, which takes most of a minute.
    let ending = Instant::now();
    lab.stop();
    let took = ending.elapsed();
    assert!(took < Duration::from_secs(10), "the end took {took:?}");
}
