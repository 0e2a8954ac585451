use std::path::Path;

use axum::http::Request;
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::*;
use crate::config::PayloadFiles;
use crate::decision::{DecisionFuture, Disk, DiskFuture, MachineHint};

const BASE: &str = "http://10.77.0.2:8441/boot";

struct Fixed(BootDecision);

impl BootDecider for Fixed {
    fn decide(&self, _hint: MachineHint) -> DecisionFuture<'_> {
        Box::pin(async { self.0.clone() })
    }

    fn disk(&self, path: String) -> DiskFuture<'_> {
        let disk: Option<Arc<dyn Disk>> =
            (path == "pass/volume/desk1/clean").then_some(Arc::new(Count));
        Box::pin(async { disk })
    }
}

/// A disk of a MiB, each byte the lowest of its place; it breaks behind the middle.
#[derive(Debug)]
struct Count;

impl Disk for Count {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if offset >= 1 << 19 {
            return Err(io::Error::other("broken"));
        }
        for (place, byte) in (offset..).zip(into) {
            *byte = place.to_le_bytes()[0];
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_disk_is_read_in_ranges_by_who_knows_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path(), BootDecision::LocalDisk);
    let path = "/boot/disk/pass/volume/desk1/clean";
    let (status, headers, _) = service.send("HEAD", path, &[]).await;
    assert_eq!((status, &headers[header::CONTENT_LENGTH]), (StatusCode::OK, &(1 << 20).into()));
    assert!(headers.get(header::ETAG).is_none(), "a volume changes");
    let (status, headers, body) = service.send("GET", path, &[("range", "bytes=254-257")]).await;
    assert_eq!((status, body), (StatusCode::PARTIAL_CONTENT, vec![254, 255, 0, 1]));
    assert_eq!(headers[header::CONTENT_RANGE], "bytes 254-257/1048576");
    // What cannot be read breaks the answer off.
    let (_, _, body) = service.send("GET", path, &[]).await;
    assert!(body.is_empty());
    let (status, ..) = service.send("GET", "/boot/disk/other/volume/desk1/clean", &[]).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, ..) = service.send("PUT", path, &[]).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
}

struct Service {
    router: Router,
    record: Arc<Record>,
}

fn service(folder: &Path, decision: BootDecision) -> Service {
    let payload = PayloadFiles { kernel: folder.join("k"), initrd: folder.join("i") };
    std::fs::write(folder.join("ipxe.efi"), b"efi").unwrap();
    std::fs::write(folder.join("snponly.efi"), b"snp").unwrap();
    std::fs::write(folder.join("undionly.kpxe"), b"bios").unwrap();
    let files = Arc::new(BootFiles::load(folder, &payload).unwrap());
    let record = Arc::new(Record::default());
    let router = router(files, Arc::new(Fixed(decision)), Arc::clone(&record), BASE.to_owned());
    Service { router, record }
}

impl Service {
    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (StatusCode, HeaderMap, Vec<u8>) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response =
            self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
        (parts.status, parts.headers, body)
    }

    async fn text(&self, path: &str) -> String {
        let (status, _, body) = self.send("GET", path, &[]).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        String::from_utf8(body).unwrap()
    }
}

const MENU: &str = "/boot/menu.ipxe?mac=52:54:00:12:34:56&platform=pcbios";

#[tokio::test]
async fn a_file_is_read_whole_in_parts_and_by_head() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path(), BootDecision::LocalDisk);
    let kernel: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(folder.path().join("k"), &kernel).unwrap();

    let (status, headers, body) = service.send("GET", "/boot/vmlinuz", &[]).await;
    assert_eq!((status, body == kernel), (StatusCode::OK, true));
    assert_eq!(headers[header::CONTENT_LENGTH], "2800000");
    assert_eq!(headers[header::ACCEPT_RANGES], "bytes");

    let (status, head, body) = service.send("HEAD", "//boot//vmlinuz", &[]).await;
    assert_eq!((status, body.len()), (StatusCode::OK, 0));
    assert_eq!(head[header::CONTENT_LENGTH], "2800000");

    let (status, headers, body) =
        service.send("GET", "/boot/vmlinuz", &[("range", "bytes=1000-1511")]).await;
    assert_eq!(status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(headers[header::CONTENT_RANGE], "bytes 1000-1511/2800000");
    assert_eq!(body, kernel[1000..1512]);

    let (status, headers, _) =
        service.send("GET", "/boot/vmlinuz", &[("range", "bytes=2800000-")]).await;
    assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(headers[header::CONTENT_RANGE], "bytes */2800000");

    let stale = [("range", "bytes=0-9"), ("if-range", "\"other\"")];
    assert_eq!(service.send("GET", "/boot/vmlinuz", &stale).await.0, StatusCode::OK);
    let etag = head[header::ETAG].to_str().unwrap();
    let fresh = [("range", "bytes=0-9"), ("if-range", etag)];
    assert_eq!(service.send("GET", "/boot/vmlinuz", &fresh).await.0, StatusCode::PARTIAL_CONTENT);
    assert_eq!(service.record.counters.snapshot().kernels_sent, 2);
}

#[tokio::test]
async fn nothing_but_the_table_is_served_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), b"secret").unwrap();
    let service = service(folder.path(), BootDecision::LocalDisk);
    let paths = [
        "/",
        "/boot/",
        "/boot/secret",
        "/secret",
        "/boot/../secret",
        "/boot/..%2fsecret",
        "/boot/%2e%2e/secret",
        "/boot/vmlinuz",
        "/boot/ipxe.efi/x",
        "/boot/autoexec.ipxe",
    ];
    for path in paths {
        assert_eq!(service.send("GET", path, &[]).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let (status, headers, _) = service.send(method, "/boot/ipxe.efi", &[]).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
        assert_eq!(headers[header::ALLOW], "GET, HEAD");
    }
    assert_eq!(service.send("GET", "/ipxe.efi", &[]).await.2, b"efi");
    let counts = service.record.counters.snapshot();
    assert_eq!(
        (counts.http_not_found, counts.http_refused, counts.loaders_sent),
        (paths.len() as u64, 4, 1)
    );
}

#[tokio::test]
async fn a_machine_is_told_what_was_decided() {
    let folder = tempfile::tempdir().unwrap();
    let local = service(folder.path(), BootDecision::LocalDisk);
    assert_eq!(local.text("/boot/start.ipxe").await, ipxe::ask_script(BASE));
    assert!(local.text(MENU).await.contains("sanboot"));
    assert!(local.text(&MENU.replace("pcbios", "efi")).await.contains("\nexit 1\n"));
    assert_eq!(
        local.send("GET", "/boot/menu.ipxe?platform=efi", &[]).await.0,
        StatusCode::BAD_REQUEST
    );

    let waiting = service(folder.path(), BootDecision::Wait { seconds: 7 });
    assert!(waiting.text(MENU).await.contains("sleep 7\n"));

    let agent =
        service(folder.path(), BootDecision::Agent { cmdline: "quiet console=ttyS0".to_owned() });
    let script = agent.text(MENU).await;
    assert!(script.contains("cairn-server boot build") && script.contains("sleep 30"), "{script}");
    for name in ["k", "i"] {
        std::fs::write(folder.path().join(name), b"x").unwrap();
    }
    assert!(agent.text(MENU).await.contains("initrd=initrd quiet console=ttyS0 ||"));

    let broken = service(folder.path(), BootDecision::Agent { cmdline: "a\nshell".to_owned() });
    assert_eq!(broken.send("GET", MENU, &[]).await.0, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_sent_breaks_the_response_off() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path(), BootDecision::LocalDisk);
    let path = folder.path().join("i");
    std::fs::write(&path, vec![7; 1_000_000]).unwrap();
    let request = Request::get("/boot/initrd").body(Body::empty()).unwrap();
    let response = service.router.clone().oneshot(request).await.unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(300_000).unwrap();
    assert!(response.into_body().collect().await.is_err());
}
