//! A volume on a real disk, served to real clients and to none that keeps to the protocol.

mod raw;

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use cairn_core::{
    id::VolumeId,
    nbd::client::SimpleReply,
    seal::SealKey,
    sign::SigningKey,
    units::{ByteCount, Generation},
    volume::{Durability, blocks_of},
};
use rustls::ServerConfig;
use tokio::{net::TcpListener, runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    Export, Exports, Visitor,
    client::{Place, keep},
    serve,
};
use crate::{
    store::{Device, Store},
    tls::{
        Authority, Member, Papers, new_authority, new_key_and_csr, public_key_of_csr, server_tls,
    },
    volume::{DiskMedium, RunningVolume, StoreSegments, Volume, VolumeKeys, VolumeName},
};

const MIB: u64 = 1 << 20;

/// The one volume `disk`, for everybody on this machine, and for agents.
struct One(Arc<RunningVolume<DiskMedium>>);

impl Exports for One {
    fn names(&self, visitor: Visitor) -> Vec<String> {
        let may = matches!(visitor, Visitor::Local | Visitor::Remote(Some(Member::Agent(_))));
        if may { vec!["disk".into()] } else { Vec::new() }
    }

    fn find(&self, name: &str, visitor: Visitor) -> Option<Arc<dyn Export>> {
        let export: Arc<dyn Export> = Arc::clone(&self.0) as _;
        self.names(visitor).iter().any(|known| known == name).then_some(export)
    }
}

struct Lab {
    folder: tempfile::TempDir,
    runtime: Runtime,
    store: Arc<Store>,
    served: Option<(SocketAddr, CancellationToken, JoinHandle<anyhow::Result<()>>)>,
    generation: u64,
}

fn keys() -> VolumeKeys {
    VolumeKeys {
        content_key: SealKey([4; 32]),
        wrapped_key: Vec::new(),
        signer: Arc::new(SigningKey::from_seed(&[6; 32]).unwrap()),
    }
}

impl Lab {
    fn new(size: u64, journal: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let device = Device::create(&folder.path().join("store")).unwrap();
        let store = Arc::new(Store::new(vec![device]).unwrap());
        let mut lab = Self { folder, runtime, store, served: None, generation: 1 };
        let capacity = journal / 4096;
        let (handle, store) = (lab.runtime.handle().clone(), Arc::clone(&lab.store));
        let medium = DiskMedium::create(
            &lab.journal(),
            capacity,
            lab.name().id,
            StoreSegments::new(store, None, handle),
        );
        let blocks = blocks_of(ByteCount(size)).unwrap();
        let volume = Volume::create(
            medium.unwrap(),
            lab.name(),
            keys(),
            Durability::Local,
            (blocks, capacity),
        )
        .unwrap();
        lab.serve(volume, None, 0);
        lab
    }

    fn journal(&self) -> std::path::PathBuf {
        self.folder.path().join("volumes/journal")
    }

    fn name(&self) -> VolumeName {
        VolumeName {
            id: VolumeId([5; 16]),
            name: "disk".into(),
            generation: Generation(self.generation),
            known: None,
        }
    }

    fn serve(&mut self, volume: Volume<DiskMedium>, tls: Option<Arc<ServerConfig>>, port: u16) {
        let volume = Arc::new(RunningVolume::start(volume).unwrap());
        let stop = CancellationToken::new();
        let listener = self.runtime.block_on(TcpListener::bind(("127.0.0.1", port))).unwrap();
        let address = listener.local_addr().unwrap();
        let task = serve(listener, Arc::new(One(volume)), tls, stop.clone());
        self.served = Some((address, stop, self.runtime.spawn(task)));
    }

    fn stop(&mut self) {
        let (_, stop, task) = self.served.take().unwrap();
        stop.cancel();
        self.runtime.block_on(task).unwrap().unwrap();
    }

    fn restart(&mut self, tls: Option<Arc<ServerConfig>>) {
        let port = self.port();
        self.stop();
        self.generation += 1;
        let (handle, store) = (self.runtime.handle().clone(), Arc::clone(&self.store));
        let medium = DiskMedium::open(
            &self.journal(),
            self.name().id,
            StoreSegments::new(store, None, handle),
        )
        .unwrap();
        let volume = Volume::open(medium, self.name(), keys()).unwrap();
        self.serve(volume, tls, port);
    }

    fn port(&self) -> u16 {
        self.served.as_ref().unwrap().0.port()
    }

    fn uri(&self) -> String {
        format!("nbd://127.0.0.1:{}/disk", self.port())
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A file of bytes that do not repeat.
    fn noise(&self, name: &str, bytes: u64) -> String {
        let file = self.file(name);
        let mut dice = crate::volume::sim::Dice::new(bytes);
        let words = (0..bytes / 8).flat_map(|_| (dice.next() | dice.next() << 50).to_le_bytes());
        std::fs::write(&file, words.collect::<Vec<u8>>()).unwrap();
        file
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.served.is_some() {
            self.stop();
        }
    }
}

/// Runs a client and returns what it said; it must do well.
fn run(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output().unwrap();
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {arguments:?}\n{out}{errors}");
    out
}

#[test]
fn real_clients_copy_and_compare() {
    let mut lab = Lab::new(64 * MIB, 8 * MIB);
    let noise = lab.noise("noise", 20 * MIB);
    let told = run("nbdinfo", &[&lab.uri()]);
    for expected in [
        "export-size: 67108864",
        "can_multi_conn: true",
        "can_fast_zero: true",
        "base:allocation",
        "can_fua: true",
    ] {
        assert!(told.contains(expected), "{expected} in\n{told}");
    }
    assert!(
        run("nbdinfo", &["--list", &format!("nbd://127.0.0.1:{}", lab.port())]).contains("disk")
    );
    run("nbdcopy", &["--flush", &noise, &lab.uri()]);
    let compare = |lab: &Lab| {
        let told = Command::new("qemu-img")
            .args(["compare", "-f", "raw", "-F", "raw", &noise, &lab.uri()])
            .output()
            .unwrap();
        // 20 MiB are as long as nothing else: the rest is zeros.
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(
            text.contains("Images are identical"),
            "{text}{}",
            String::from_utf8_lossy(&told.stderr)
        );
    };
    compare(&lab);
    lab.restart(None);
    compare(&lab);
    let back = lab.file("back.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &lab.uri(), &back]);
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &back, &lab.uri()]);
    // What nbdsh is, with the system's Python.
    let shell = ["-m", "nbd", "-u", &lab.uri(), "-c", "print(h.get_size())"];
    let size = run("/usr/bin/python3", &shell);
    assert_eq!(size.trim(), "67108864");
    let map = run("nbdinfo", &["--map", "--totals", &lab.uri()]);
    assert!(map.contains("46137344") && map.contains("hole,zero"), "{map}");
    let said = run("qemu-img", &["bench", "-w", "-c", "2000", "-d", "16", "-f", "raw", &lab.uri()]);
    assert!(said.contains("Run completed in"), "{said}");
}

#[test]
fn real_clients_verify_what_they_wrote() {
    let mut lab = Lab::new(64 * MIB, 8 * MIB);
    let fio = |lab: &Lab, more: &[&str]| {
        let uri = format!("--uri={}", lab.uri());
        let common = [
            "--name=v",
            "--ioengine=nbd",
            &uri,
            "--size=48m",
            "--iodepth=16",
            "--randseed=7",
            "--verify=crc32c",
            "--output-format=terse",
        ];
        run("fio", &[&common, more].concat());
    };
    fio(&lab, &["--rw=randwrite", "--bsrange=4k-64k", "--fsync=64"]);
    lab.restart(None);
    fio(&lab, &["--rw=randwrite", "--bsrange=4k-64k", "--verify_only"]);
    // Not on the borders of blocks.
    fio(&lab, &["--rw=randwrite", "--bs=5632", "--blockalign=512"]);
    run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 7 1000 5000",
            "-c",
            "read -P 7 1000 5000",
            "-c",
            "write -z 0 64k",
            "-c",
            "read -P 0 0 64k",
            "-c",
            "flush",
            "-c",
            "discard 0 1M",
            &lab.uri(),
        ],
    );
    run(
        "qemu-img",
        &["bench", "-f", "raw", "-w", "-c", "2000", "-d", "32", "--flush-interval=50", &lab.uri()],
    );
}

#[test]
fn libnbd_gets_what_it_asks_for() {
    let lab = Lab::new(64 * MIB, 8 * MIB);
    let script = "
import nbd
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri('URI')
assert h.get_size() == 64 << 20
h.pwrite(b'stone' * 1000, 4000, nbd.CMD_FLAG_FUA)
assert h.pread(5000, 4000) == b'stone' * 1000
h.zero(4096, 4096, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(10, 4090)[6:] == bytes(4)
h.trim(64 << 20, 0)
assert h.pread(8192, 0) == bytes(8192)
h.flush()
h.cache(4096, 0)
for wrong in [lambda: h.pread(10, 64 << 20), lambda: h.pwrite(b'x', 64 << 20), lambda: h.zero(1 << 20, (64 << 20) - 1)]:
    h.set_strict_mode(0)
    try:
        wrong()
        assert False
    except nbd.Error as error:
        assert error.errnum in (22, 28), error
";
    // The distribution's: another one has not its library.
    run("/usr/bin/python3", &["-c", &script.replace("URI", &lab.uri())]);
}

/// The papers of an agent, as `nbds` clients look for them in a folder.
fn write_papers(folder: &Path, authority: &Authority, member: Member) {
    std::fs::create_dir(folder).unwrap();
    let papers = papers_of(authority, member);
    std::fs::write(folder.join("ca-cert.pem"), papers.ca_pem).unwrap();
    std::fs::write(folder.join("client-cert.pem"), papers.certificate_pem).unwrap();
    std::fs::write(folder.join("client-key.pem"), papers.key_pem).unwrap();
}

fn papers_of(authority: &Authority, member: Member) -> Papers {
    let made = new_key_and_csr().unwrap();
    let key = public_key_of_csr(&made.csr_pem).unwrap();
    Papers {
        certificate_pem: authority.certify(&member, &key).unwrap().certificate_pem,
        key_pem: made.key_pem,
        ca_pem: authority.ca_pem().to_owned(),
    }
}

fn new_site() -> Authority {
    let (ca, key) = new_authority().unwrap();
    Authority::new(ca, &key).unwrap()
}

#[test]
fn by_tls_only_who_has_papers_of_the_site_is_served() {
    let mut lab = Lab::new(64 * MIB, 8 * MIB);
    let (authority, foreign) = (new_site(), new_site());
    let papers = authority.certify_server(None, &BTreeSet::new()).unwrap();
    lab.restart(Some(server_tls(&papers).unwrap()));
    let agent = Member::Agent(cairn_core::id::AgentId([1; 16]));
    let target = Member::Target(cairn_core::id::InstallId([1; 16]));
    let ask = |name: &str, authority: &Authority, member: Member| {
        let folder = lab.folder.path().join(name);
        write_papers(&folder, authority, member);
        let uri =
            format!("nbds://localhost:{}/disk?tls-certificates={}", lab.port(), folder.display());
        Command::new("nbdinfo").arg(uri).output().unwrap()
    };
    let told = ask("agent", &authority, agent);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert!(String::from_utf8_lossy(&told.stdout).contains("with TLS"));
    assert!(!ask("target", &authority, target).status.success());
    assert!(!ask("foreign", &foreign, agent).status.success());
    let noise = lab.noise("noise", 4 * MIB);
    let uri = format!(
        "nbds://localhost:{}/disk?tls-certificates={}",
        lab.port(),
        lab.folder.path().join("agent").display()
    );
    run("nbdcopy", &["--flush", &noise, &uri]);
    let back = lab.file("back");
    run("nbdcopy", &[&uri, &back]);
    assert_eq!(std::fs::read(noise).unwrap()[..], std::fs::read(back).unwrap()[..4 << 20]);
}

/// The server is restarted again and again under a machine whose disk it serves: each write is answered, none is lost.
#[test]
fn a_disk_outlives_its_servers() {
    const BLOCKS: u64 = 600;
    let mut lab = Lab::new(64 * MIB, 8 * MIB);
    let authority = new_site();
    let tls = server_tls(&authority.certify_server(None, &BTreeSet::new()).unwrap()).unwrap();
    lab.restart(Some(Arc::clone(&tls)));
    let address = lab.served.as_ref().unwrap().0;
    let papers = papers_of(&authority, Member::Agent(cairn_core::id::AgentId([1; 16])));
    let (mut disk, kernel) = UnixStream::pair().unwrap();
    let said = Arc::new(Mutex::new(Vec::new()));
    let say = {
        let said = Arc::clone(&said);
        move |line: &str| said.lock().unwrap().push(line.to_owned())
    };
    let keeping = lab.runtime.spawn(async move {
        let place = Place::new(address, "disk", &papers)?;
        let (connection, export) = place.connect().await?;
        assert_eq!(export.size, 64 * MIB);
        kernel.set_nonblocking(true)?;
        keep(tokio::net::UnixStream::from_std(kernel)?, &place, connection, export, say).await
    });
    let worker = std::thread::spawn(move || {
        for block in 0..BLOCKS {
            ask(&mut disk, 1, block, &[lowest(block); 4096]);
            if block % 40 == 39 {
                ask(&mut disk, 3, 0, &[]);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for block in 0..BLOCKS {
            assert_eq!(ask(&mut disk, 0, block, &[]), [lowest(block); 4096], "block {block}");
        }
        disk.write_all(&request(2, 0, 0, 0)).unwrap();
    });
    let mut restarts = 0;
    while !worker.is_finished() {
        std::thread::sleep(Duration::from_millis(300));
        lab.restart(Some(Arc::clone(&tls)));
        restarts += 1;
    }
    worker.join().unwrap();
    lab.runtime.block_on(keeping).unwrap().unwrap();
    let said = said.lock().unwrap();
    assert!(restarts >= 3 && said.len() >= 6, "{restarts}: {said:?}");
    assert!(said.iter().step_by(2).all(|line| line.contains("is away")), "{said:?}");
}

const fn lowest(block: u64) -> u8 {
    block.to_le_bytes()[0]
}

/// One request as the kernel sends it, and what it reads.
fn ask(disk: &mut UnixStream, command: u16, block: u64, payload: &[u8]) -> Vec<u8> {
    let (offset, length) = if command == 3 { (0, 0) } else { (block * 4096, 4096) };
    disk.write_all(&[&request(command, block, offset, length), payload].concat()).unwrap();
    let mut head = [0; 16];
    disk.read_exact(&mut head).unwrap();
    assert_eq!(SimpleReply::parse(&head).unwrap(), SimpleReply { error: 0, cookie: block });
    let mut data = vec![0; if command == 0 { 4096 } else { 0 }];
    disk.read_exact(&mut data).unwrap();
    data
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&0_u16.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}
