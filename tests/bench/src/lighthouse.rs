//! Lighthouse on each page of the dashboard: accessibility and best practices.
//!
//! It comes from npm when it is not there, so npm is needed; the pages themselves need no network.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use reqwest::header;
use serde::Deserialize;

use super::{
    Figure, Wanted,
    dashboard::{PAGES, Server, sign_in},
};
use cairn_tests::{paths, tool};

const LIGHTHOUSE: &str = "lighthouse@12.2.3";
const CHROMIUM: &str = "/usr/bin/chromium";
const FLAGS: &str = "--headless=new --no-sandbox --ignore-certificate-errors";

#[derive(Deserialize)]
struct Report {
    categories: Categories,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Categories {
    accessibility: Category,
    best_practices: Category,
}

#[derive(Deserialize)]
struct Category {
    /// 0 to 1.
    score: f64,
}

pub(super) fn measure() -> Result<Vec<Figure>> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let tools = paths::target().join("tools/lighthouse");
    let program = tools.join("node_modules/.bin/lighthouse");
    if !program.exists() {
        fs::create_dir_all(&tools).context("make a folder")?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&tools).arg(LIGHTHOUSE);
        tool::finish(&mut npm).context("fetch Lighthouse: install npm and Node.js 18 or newer")?;
    }
    let folder = tempfile::tempdir().context("make a folder")?;
    let mut password = None;
    let server = Server::start(&folder.path().join("data"), &mut password)?;
    let password = password.context("the server prints a password")?;
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let cookie = runtime.block_on(sign_in(&server.url, &password))?;
    let mut figures = Vec::new();
    for page in ["sign-in"].into_iter().chain(PAGES) {
        let name = if page.is_empty() { "overview" } else { page };
        let report = folder.path().join("report.json");
        look(&program, &format!("{}/{page}", server.url), &cookie, &report)?;
        let report = fs::read(&report).context("read what Lighthouse wrote")?;
        let Report { categories } =
            serde_json::from_slice(&report).context("read what Lighthouse wrote")?;
        for (what, category) in [
            ("accessibility", categories.accessibility),
            ("best practices", categories.best_practices),
        ] {
            let value = category.score * 100.0;
            let what = format!("page {name}, {what}");
            figures.push(Figure::new(&what, value, "of 100", Wanted::AtLeast(95.0)));
        }
    }
    Ok(figures)
}

fn look(program: &Path, page: &str, cookie: &str, report: &Path) -> Result<()> {
    let headers = serde_json::json!({ header::COOKIE.as_str(): cookie });
    let mut lighthouse = Command::new(program);
    lighthouse
        .args([page, "--quiet", "--only-categories=accessibility,best-practices"])
        .args(["--output=json", &format!("--chrome-flags={FLAGS}")])
        .arg(format!("--extra-headers={headers}"))
        .arg(format!("--output-path={}", report.display()))
        .env("CHROME_PATH", CHROMIUM);
    tool::finish(&mut lighthouse).map(drop).with_context(|| format!("look at {page}"))
}
