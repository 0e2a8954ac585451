//! A store in a bucket of a real S3 server.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use cairn_tests::{
    cairn::{Server, binary, eventually},
    image::{Synthetic, first_difference, synthetic_ext4},
    netns::{Host, Lab},
    process::{Process, Program},
    site::Site,
};

use crate::content;

const SOON: Duration = Duration::from_secs(60);
pub(crate) const DEVICE: [&str; 2] = ["--store", "s3://images/site"];
const SIZE: usize = 24 << 20;

/// The S3 server's machine; its buckets are folders.
pub(crate) struct S3 {
    process: Process,
    host: Host,
    folder: PathBuf,
}

impl S3 {
    pub(crate) fn start(lab: &mut Lab) -> Self {
        let host = lab.host("s3", 3).unwrap();
        let folder = lab.dir().join("s3");
        fs::create_dir_all(folder.join("images")).unwrap();
        Self { process: serve(&host, &folder), host, folder }
    }

    fn restart(&mut self) {
        self.process = serve(&self.host, &self.folder);
    }

    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let endpoint = format!("http://{}:9000", self.host.address());
        let words = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "lab"),
            ("AWS_ACCESS_KEY_ID", "cairn"),
            ("AWS_SECRET_ACCESS_KEY", "not a secret"),
        ];
        words.map(|(key, value)| (key, value.to_owned())).into()
    }

    fn segments(&self) -> usize {
        let segments = self.folder.join("images/site/segments");
        let folders = fs::read_dir(segments).unwrap().map(|folder| folder.unwrap().path());
        folders.map(|folder| fs::read_dir(folder).unwrap().count()).sum()
    }
}

fn serve(host: &Host, folder: &Path) -> Process {
    let program = Program::new("s3", binary("cairn-s3").unwrap())
        .args([folder])
        .args(["--listen", &format!("{}:9000", host.address())])
        .args(["--access-key", "cairn", "--secret-key", "not a secret"])
        .on(host);
    let process = program.start().unwrap();
    process.wait_for_line("^serving$", SOON).unwrap();
    process
}

/// A second server, with a data folder of its own, on the same bucket: what it says.
fn refused(lab: &mut Lab, s3: &S3) -> String {
    let host = lab.host("second", 4).unwrap();
    let mut program = Program::new("second", binary("cairn-server").unwrap())
        .args(["serve", "--data-dir"])
        .args([lab.dir().join("second")])
        .args(DEVICE)
        .on(&host);
    for (key, value) in s3.environment() {
        program = program.env(key, value);
    }
    let mut second = program.start().unwrap();
    assert!(!second.wait(SOON).unwrap().success());
    second.transcript().text(0)
}

#[test]
fn images_and_volumes_live_in_a_bucket_that_goes_away_and_comes_back() {
    let mut lab = Lab::new("bucket").unwrap();
    let mut s3 = S3::start(&mut lab);
    let host = lab.host("server", 1).unwrap();
    let data_dir = lab.dir().join("server");
    let server = Server::first_start_in(&lab, &host, &data_dir, &DEVICE, s3.environment()).unwrap();
    let mut site = Site { agents: Vec::new(), server, dhcpd: None, lab };
    site.join(2, "256MiB").unwrap();
    let wanted = Synthetic { size_mib: 48, files_mib: 24, seed: 4 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap().path;
    site.add_image(&image, "lab").unwrap();
    site.wait_scattered("lab").unwrap();
    site.server.run(&["volume", "create", "v", "--size", "24MiB"]).unwrap();
    let file = content::noise(site.lab.dir().join("content"), SIZE, 9);
    content::write(&host, "v", &file);
    assert!(!data_dir.join("store").exists());
    let said = refused(&mut site.lab, &s3);
    assert!(said.contains("s3://images/site") && said.contains("in use by another"), "{said}");

    // Without the bucket nothing is lost, and what cannot be had is told with the bucket's name.
    s3.process.kill().unwrap();
    let export = site.lab.dir().join("export.raw");
    let words = ["image", "export", "lab", export.to_str().unwrap()];
    let error = format!("{:#}", site.server.run(&words).unwrap_err());
    assert!(error.contains("s3://images/site"), "{error}");
    s3.restart();
    eventually("the image to be read again", SOON, || Ok(site.server.run(&words).ok())).unwrap();
    assert_eq!(first_difference(&image, &export).unwrap(), None);

    // The next server has the bucket although the last one never let go of it.
    site.server.process().kill().unwrap();
    site.server.restart(&site.lab, &DEVICE).unwrap();
    content::is_in(&host, "v", &file);
    let segments = s3.segments();
    assert!(segments > 0);
    site.server.run(&["volume", "delete", "v"]).unwrap();
    eventually("the volume to leave the bucket", SOON, || {
        Ok((s3.segments() < segments).then_some(()))
    })
    .unwrap();
    let code = site.server.process().terminate().unwrap();
    assert!(code.success());
    assert!(!s3.folder.join("images/site/cairn-user").exists(), "it let go of the bucket");
}
