//! What takes long: `cargo xtask test --long`.
mod long {
    use std::time::Duration;

    use cairn_tests::{
        paths,
        process::Program,
        site::{NetworkBoot, Site},
    };
    use serde_json::Value;

    /// It asks for as long as it is told, and then sums up.
    const SECONDS: &str = "120";
    const PATIENCE: Duration = Duration::from_secs(400);
    /// A server error, an answer that the document does not know, a wrong answer to a method that is not there, and the like.
    const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
         response_headers_conformance,response_schema_conformance,missing_required_header,\
         unsupported_method,allow_header_conformance,use_after_free,ensure_resource_availability";

    #[test]
    fn schemathesis_finds_nothing_in_what_the_openapi_document_says() {
        let tool = paths::target().join("tools/schemathesis/bin/schemathesis");
        assert!(
            tool.is_file(),
            "{} is missing: `cargo xtask test --long` installs it",
            tool.display()
        );
        let site = Site::start("schemathesis", NetworkBoot::Off).unwrap();
        let made: Value = site.server.json(&["token", "create", "--kind", "api"]).unwrap();
        let document = format!("https://{}:8440/api/openapi.json", site.server.host().address());
        let bearer = format!("Authorization: Bearer {}", made["token"].as_str().unwrap());
        // It leaves what it learned in the folder that it runs in.
        let mut asking = Program::new("schemathesis", "sh")
            .args(["-c", r#"cd "$1" && shift && exec "$@""#, "sh"])
            .args([site.lab.dir(), tool.as_path()])
            .args(["run", &document, "--tls-verify", "false", "-H", &bearer])
            // One does not end, the others would take its own token from it.
            .args(["--exclude-path", "/api/v1/events", "--exclude-path", "/api/v1/session"])
            .args(["--exclude-path-regex", "/api/v1/tokens/.*"])
            .args(["-c", CHECKS, "--max-time", SECONDS, "--seed", "1"])
            .args(["--warnings", "off", "--no-color"])
            .on(site.server.host())
            .start()
            .unwrap();
        asking.wait_success(PATIENCE).unwrap();
        let said = asking.transcript().text(0);
        assert!(said.contains("No issues found"), "{said}");
    }
}
