//! Uploads that are broken, and the same disk in every format that is taken.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use cairn_array::tls::{self, Member, NameTable, Token, Trust};
use cairn_tests::{
    cairn::eventually,
    image::first_difference,
    site::{NetworkBoot, Site},
    tool,
};

use super::{NAME, SOON, files_below, image_with};

/// Speaks with the API from the server's own machine.
struct Api {
    client: reqwest::Client,
    token: String,
}

impl Api {
    fn of(site: &Site) -> Self {
        let token = fs::read_to_string(site.server.data_dir().join("secrets/cli-token")).unwrap();
        let token = token.trim().to_owned();
        let names = Arc::new(NameTable::default());
        names.set(Member::Server, SocketAddr::from((site.server.host().address(), 8440)));
        let trust = Trust::Pinned(token.parse::<Token>().unwrap().fingerprint);
        Self { client: tls::client(&trust, None, names).unwrap(), token }
    }

    /// Uploads `body` as it is; the status and the problem's code, if it is one.
    fn upload(&self, site: &Site, query: &str, body: Vec<u8>) -> (u16, String) {
        let url = tls::url(&Member::Server, &format!("/api/v1/images/{NAME}/versions?{query}"));
        let ask = async {
            let request = self.client.post(url).bearer_auth(&self.token).body(body);
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let said: serde_json::Value =
                serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
            (status, said["code"].as_str().unwrap_or_default().to_owned())
        };
        let ask = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(ask)
        };
        site.server.host().enter(ask).unwrap()
    }
}

fn qemu_img(args: &[&str], files: &[&Path]) {
    let files = files.iter().map(|file| file.as_os_str());
    tool::run("qemu-img", args.iter().map(|arg| arg.as_ref()).chain(files)).unwrap();
}

/// A big-endian number in a qcow2 header.
fn field(file: &Path, at: u64) -> u64 {
    let mut bytes = [0; 8];
    File::open(file).unwrap().read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

/// The image with `bytes` written over it at `at`.
fn broken(whole: &Path, at: u64, bytes: &[u8]) -> Vec<u8> {
    let mut content = fs::read(whole).unwrap();
    let at = usize::try_from(at).unwrap();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    content
}

/// Broken containers: what it is, the query, the bytes, the code.
type Case = (&'static str, String, Vec<u8>, &'static str);

fn cases(folder: &Path, image: &Path) -> Vec<Case> {
    let path = |name: &str| folder.join(name);
    let qcow2 = path("whole.qcow2");
    qemu_img(&["convert", "-O", "qcow2"], &[image, &qcow2]);
    let (backed, apart) = (path("backed.qcow2"), path("apart.qcow2"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b"], &[image, &backed]);
    let option = format!("data_file={}", path("apart.data").display());
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &option], &[&apart, Path::new("16M")]);
    let zst = path("whole.raw.zst");
    tool::run("zstd", ["-q".as_ref(), image.as_os_str(), "-o".as_ref(), zst.as_os_str()]).unwrap();
    let raw = fs::read(image).unwrap();
    let half = |file: &Path| {
        let bytes = fs::read(file).unwrap();
        bytes[..bytes.len() / 2].to_vec()
    };
    let size = raw.len();
    let (l1, refcounts) = (field(&qcow2, 40), field(&qcow2, 48));
    let l2 = field(&qcow2, l1) & 0x00ff_ffff_ffff_fe00;
    let far = (0x8000_0000_0000_0000 | (1_u64 << 40)).to_be_bytes();
    let crooked = (0x8000_0000_0000_0000 | 0x1_0200_u64).to_be_bytes();
    assert!(refcounts > 0 && l2 > 0);
    let whole_size = format!("format=raw&size={size}");
    [
        ("raw, cut off", whole_size.as_str(), half(image), "image_truncated"),
        ("raw, too long", "format=raw&size=4096", raw, "image_too_long"),
        ("nothing", "format=raw", Vec::new(), "image_empty"),
        ("no image", "format=raw", vec![7; 1 << 20], "not_an_image"),
        ("zstd, cut off", "format=raw.zst", half(&zst), "image_unreadable"),
        ("zstd, too long", "format=raw.zst&size=4096", fs::read(&zst).unwrap(), "image_too_long"),
        ("no qcow2", "format=qcow2", half(image), "image_malformed"),
        ("a backing file", "format=qcow2", fs::read(&backed).unwrap(), "image_malformed"),
        ("a data file", "format=qcow2", fs::read(&apart).unwrap(), "image_malformed"),
        ("qcow2, cut off", "format=qcow2", half(&qcow2), "image_malformed"),
        ("L1 far away", "format=qcow2", broken(&qcow2, 40, &far), "image_malformed"),
        ("L1 of 4 Gi entries", "format=qcow2", broken(&qcow2, 36, &[255; 4]), "image_malformed"),
        ("L2 far away", "format=qcow2", broken(&qcow2, l1, &far), "image_malformed"),
        ("L2 not aligned", "format=qcow2", broken(&qcow2, l1, &crooked), "image_malformed"),
        ("a cluster far away", "format=qcow2", broken(&qcow2, l2, &far), "image_malformed"),
        ("a disk of 2^63 bytes", "format=qcow2", broken(&qcow2, 24, &far), "image_too_large"),
        ("clusters of 2^60", "format=qcow2", broken(&qcow2, 20, &[0, 0, 0, 60]), "image_malformed"),
        ("version 9", "format=qcow2", broken(&qcow2, 7, &[9]), "image_malformed"),
    ]
    .into_iter()
    .map(|(what, query, body, code)| (what, query.to_owned(), body, code))
    .collect()
}

#[test]
fn a_broken_one_is_refused_by_its_name_and_leaves_nothing() {
    let mut site = Site::start("broken-uploads", NetworkBoot::Off).unwrap();
    // The server puts boot files into its store by itself, once.
    eventually("the bundle to be in the store", SOON, || {
        Ok((site.server.status()?.bundle.bytes > 0).then_some(()))
    })
    .unwrap();
    let image = image_with(&site, 6);
    let api = Api::of(&site);
    let left = |site: &Site| {
        let files = files_below(site.server.data_dir());
        // The database grows; nothing else may.
        let files = files.into_iter().filter(|(path, _)| !name_of(path).starts_with("cairn.db"));
        files.collect::<Vec<_>>()
    };
    let before = left(&site);
    for (what, query, body, wanted) in cases(site.lab.dir(), &image) {
        let (status, code) = api.upload(&site, &query, body);
        assert_eq!((status, code.as_str()), (422, wanted), "{what}");
        assert_eq!(left(&site), before, "{what}: something is left");
    }
    let listed: Vec<serde_json::Value> = site.server.json(&["image", "list"]).unwrap();
    assert!(listed.is_empty(), "{listed:?}");
    assert!(site.server.process().ended().unwrap().is_none());
    let log = site.server.process().transcript().text(0);
    assert!(!log.contains("panicked"), "{log}");
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn one_disk_is_the_same_in_every_format() {
    let site = Site::start("formats", NetworkBoot::Off).unwrap();
    let image = image_with(&site, 6);
    let files: Vec<PathBuf> = ["plain.qcow2", "packed.qcow2", "packed.raw.zst"]
        .iter()
        .map(|name| site.lab.dir().join(name))
        .collect();
    qemu_img(&["convert", "-O", "qcow2"], &[&image, &files[0]]);
    qemu_img(&["convert", "-c", "-O", "qcow2"], &[&image, &files[1]]);
    let pack = ["-q".as_ref(), image.as_os_str(), "-o".as_ref(), files[2].as_os_str()];
    tool::run("zstd", pack).unwrap();
    for (file, name) in files.iter().zip(["plain", "packed", "zst"]) {
        let file = file.to_str().unwrap();
        site.server.run(&["image", "add", file, "--name", name]).unwrap();
        let exported = site.lab.dir().join("exported.raw");
        site.server.run(&["image", "export", name, exported.to_str().unwrap()]).unwrap();
        assert_eq!(first_difference(&image, &exported).unwrap(), None, "{name}");
        // The raw image brings nothing new.
        let again = ["image", "add", image.to_str().unwrap(), "--name", name];
        let again: serde_json::Value = site.server.json(&again).unwrap();
        assert_eq!((&again["identical"], &again["number"]), (&true.into(), &1.into()), "{name}");
    }
}
