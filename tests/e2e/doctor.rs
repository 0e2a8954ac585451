//! `cairn-server doctor` on machines that are as they should be, and on those that are not.

use std::{
    path::Path,
    process::{Command, Output},
};

use cairn_tests::{
    cairn::binary,
    netns::Host,
    paths,
    site::{NetworkBoot, Site},
};

/// The doctor for a server with this data folder, that shall answer blank machines.
fn examine(host: &Host, interface: &str, data_dir: &Path, more: &[&str]) -> (Output, String) {
    let output = Command::new("ip")
        .args(["netns", "exec", host.namespace()])
        .arg(binary("cairn-server").unwrap())
        .args(["doctor", "--boot-interface", interface, "--boot-dir"])
        .arg(paths::boot_payload())
        .arg("--data-dir")
        .arg(data_dir)
        .args(more)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    (output, said)
}

fn line<'a>(said: &'a str, name: &str) -> &'a str {
    said.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name} in {said}"))
}

#[test]
fn it_says_what_is_wrong_and_what_to_do_and_changes_nothing() {
    let mut site = Site::start("doctor", NetworkBoot::Proxy).unwrap();
    let server = site.server.host().clone();
    let (output, said) = examine(&server, "eth0", site.server.data_dir(), &[]);
    assert!(output.status.success(), "{said}");
    assert!(line(&said, "DHCP").contains("10.77.0.2 gives addresses on eth0"), "{said}");
    assert!(line(&said, "ports").starts_with("ok"), "{said}");
    assert!(line(&said, "secrets").contains("recovery-key.txt is still here"), "{said}");
    assert!(line(&said, "certificates").starts_with("ok"), "{said}");
    let survey = site.server.run(&["boot", "survey"]).unwrap();
    assert!(survey.contains("10.77.0.2 gives addresses on eth0"), "{survey}");
    let said = site.server.run(&["boot", "status"]).unwrap();
    assert!(line(&said, "survey").contains("10.77.0.2 gives addresses"), "{said}");
    assert!(said.contains("no machine booted"), "{said}");
    let secret = site.server.data_dir().join("secrets/ca.key");
    let mode = |mode: &str| {
        assert!(Command::new("chmod").arg(mode).arg(&secret).status().unwrap().success());
    };
    mode("644");
    let (output, said) = examine(&server, "eth0", site.server.data_dir(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(line(&said, "BAD").contains("chmod 600"), "{said}");
    mode("600");

    // A second server would be in the first one's way, and its ports are taken where the first one is.
    let fresh = site.lab.dir().join("fresh");
    let other = site.lab.host("other", 40).unwrap();
    let (output, said) = examine(&other, "eth0", &fresh, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(line(&said, "BAD").contains("10.77.0.1 on eth0 answers machines that boot"), "{said}");
    assert!(line(&said, "boot services").starts_with("ok"), "{said}");
    let (output, said) = examine(&server, "eth0", &fresh, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let checks: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap();
    let taken = checks.iter().find(|check| check["name"] == "HTTPS").unwrap();
    assert_eq!(taken["verdict"], "bad");
    assert!(taken["finding"].as_str().unwrap().contains("choose another with --listen"));
    assert!(!fresh.exists(), "it made a data folder");

    // Without a DHCP server nobody has an address to boot with.
    site.dhcpd = None;
    let (_, said) = examine(&other, "eth0", &fresh, &["--dhcp", "off"]);
    assert!(line(&said, "BAD").contains("nobody gives addresses on eth0"), "{said}");
    let (_, said) = examine(&other, "eth7", &fresh, &[]);
    assert!(said.contains("eth7"), "{said}");
}
