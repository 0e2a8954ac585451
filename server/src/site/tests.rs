use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use cairn_array::tls::{Member, new_key_and_csr};
use cairn_core::id::AgentId;

use super::*;

fn refusal(data: &Path) -> String {
    let error = Site::open(data).unwrap_err();
    assert!(error.downcast_ref::<RefusedSecret>().is_some(), "{error:#}");
    error.to_string()
}

#[test]
fn the_first_start_makes_a_site_and_the_next_one_finds_it() {
    let data = tempfile::tempdir().unwrap();
    let first = Site::open(data.path()).unwrap();
    assert!(first.first_start);
    let recovery = data.path().join(secrets::RECOVERY_FILE);
    let text = fs::read_to_string(&recovery).unwrap();
    assert!(text.contains("offline") && text.contains("AGE-SECRET-KEY-1"), "{text}");
    assert_eq!(fs::metadata(&recovery).unwrap().permissions().mode() & 0o777, 0o600);
    // It is the administrator's to take away.
    fs::remove_file(&recovery).unwrap();
    let again = Site::open(data.path()).unwrap();
    assert!(!again.first_start);
    assert_eq!(again.site.id(), first.site.id());
    assert_eq!(again.site.verifying_key(), first.site.verifying_key());
    assert!(!recovery.exists());
}

#[test]
fn a_first_start_that_was_cut_short_is_begun_again() {
    let data = tempfile::tempdir().unwrap();
    fs::create_dir(data.path().join("secrets.unfinished")).unwrap();
    fs::write(data.path().join("secrets.unfinished/ca.key"), "half").unwrap();
    assert!(Site::open(data.path()).unwrap().first_start);
    assert!(!data.path().join("secrets.unfinished").exists());
}

#[test]
fn a_secret_that_is_missing_empty_or_exposed_keeps_the_site_closed() {
    for name in ["ca.key", "ca.pem", "signing.key", "server.agekey", "recovery.pub"] {
        let data = tempfile::tempdir().unwrap();
        Site::open(data.path()).unwrap();
        let path = data.path().join("secrets").join(name);
        let good = fs::read(&path).unwrap();

        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let said = refusal(data.path());
        assert!(said.contains(name) && said.contains("chmod 600"), "{said}");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();

        fs::write(&path, "").unwrap();
        assert!(refusal(data.path()).contains("is empty"));

        fs::remove_file(&path).unwrap();
        assert!(refusal(data.path()).contains("restore it from your backup"));
        fs::write(&path, &good).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        Site::open(data.path()).unwrap();
    }
}

#[test]
fn an_exposed_folder_or_a_lost_one_keeps_the_site_closed() {
    let data = tempfile::tempdir().unwrap();
    Site::open(data.path()).unwrap();
    let folder = data.path().join("secrets");
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    assert!(refusal(data.path()).contains("chmod 700"));
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
    // A database without its secrets is a site that lost them, not a new one.
    fs::write(data.path().join(crate::config::DATABASE_FILE), "").unwrap();
    fs::remove_dir_all(&folder).unwrap();
    assert!(refusal(data.path()).contains("is missing"));
}

#[test]
fn content_keys_open_with_the_server_key_and_the_recovery_key_and_no_other() {
    let data = tempfile::tempdir().unwrap();
    let site = Site::open(data.path()).unwrap().site;
    let wrapped = site.wrap_content_key(&SealKey([7; 32])).unwrap();
    assert_eq!(site.open_content_key(&wrapped).unwrap().0, [7; 32]);

    let text = fs::read_to_string(data.path().join(secrets::RECOVERY_FILE)).unwrap();
    let recovery: Identity = text.lines().last().unwrap().parse().unwrap();
    assert_eq!(recovery.unwrap_key(&wrapped).unwrap().0, [7; 32]);

    let other = tempfile::tempdir().unwrap();
    let other = Site::open(other.path()).unwrap().site;
    assert!(other.open_content_key(&wrapped).is_err());
    let mut changed = wrapped;
    *changed.last_mut().unwrap() ^= 1;
    assert!(site.open_content_key(&changed).is_err());
}

#[test]
fn the_server_chooses_the_names() {
    let data = tempfile::tempdir().unwrap();
    let site = Site::open(data.path()).unwrap().site;
    let request = new_key_and_csr().unwrap();
    let member = Member::Agent(AgentId([3; 16]));
    let certified = site.authority().certify(&member, &request.public_key_der).unwrap();
    let der = x509_parser::pem::parse_x509_pem(certified.certificate_pem.as_bytes()).unwrap().1;
    let certificate = der.parse_x509().unwrap();
    assert_eq!(certificate.raw_serial(), certified.serial);
    assert_eq!(certificate.public_key().raw, request.public_key_der);
    let names = certificate.subject_alternative_name().unwrap().unwrap().value;
    assert_eq!(names.general_names.len(), 1);
    assert!(format!("{names:?}").contains(&member.dns_name()));
    let days = certificate.validity().not_after.timestamp()
        - certificate.validity().not_before.timestamp();
    // Two years, and the month that it is backdated by.
    assert_eq!(days / 86_400, 760);
}
