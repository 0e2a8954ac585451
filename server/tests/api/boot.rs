//! How far machines came on their way from firmware to agent.

use cairn_server::api::boot::{Boot, Booting};

use crate::harness::{Server, code};

const MAC: &str = "52:54:00:12:34:01";

async fn boot(server: &Server) -> Boot {
    server.api().get("/api/v1/boot").await.unwrap()
}

fn steps(machine: &Booting) -> Vec<&str> {
    machine.steps.iter().map(|step| step.step.as_str()).collect()
}

/// As iPXE asks for it.
async fn ask(server: &Server, file: &str) -> String {
    let reply = reqwest::get(format!("http://{}/boot/{file}", server.boot)).await.unwrap();
    reply.text().await.unwrap()
}

#[tokio::test]
async fn a_machine_is_followed_from_its_loader_to_its_agent() {
    let server = Server::start().await;
    let before = boot(&server).await;
    assert_eq!((before.machines.len(), before.dhcp.as_str()), (0, "off"));
    let menu = format!("menu.ipxe?mac={MAC}&platform=efi");
    assert!(ask(&server, &menu).await.contains("boot build"));
    let [waits] = boot(&server).await.machines.try_into().unwrap();
    assert_eq!(steps(&waits), ["loader-ran", "told"]);
    assert_eq!((waits.state.as_str(), waits.machine.as_deref()), ("stopped", None));
    let stopped = waits.stopped.unwrap();
    assert_eq!(stopped.code, "no-payload");
    assert!(stopped.fix.contains("cairn-server boot build"), "{}", stopped.fix);

    let folder = server.folder.path().join("boot");
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["vmlinuz", "initrd.img"] {
        std::fs::write(folder.join(file), file).unwrap();
    }
    assert!(ask(&server, &menu).await.contains("vmlinuz"));
    ask(&server, "vmlinuz").await;
    ask(&server, "initrd").await;
    let [loads] = boot(&server).await.machines.try_into().unwrap();
    assert_eq!(steps(&loads), ["loader-ran", "told", "kernel", "initramfs"]);
    assert_eq!((loads.state.as_str(), loads.address.as_deref()), ("on-its-way", Some("127.0.0.1")));

    server.hello(MAC, None).await;
    let [there] = boot(&server).await.machines.try_into().unwrap();
    assert_eq!(steps(&there), ["loader-ran", "told", "kernel", "initramfs", "agent"]);
    assert_eq!(there.state, "arrived");
    assert!(there.machine.is_some() && there.secure_boot.is_some(), "{there:?}");
    // A machine that did not boot by us has no way.
    server.hello("52:54:00:12:34:02", None).await;
    assert_eq!(boot(&server).await.machines.len(), 1);
    let survey = server.api().post::<serde_json::Value>("/api/v1/boot/survey").await;
    assert_eq!(code(survey), "no_interface");
}
