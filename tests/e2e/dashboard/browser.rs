//! A real Chromium without a screen, driven as a person would: it is looked at, clicked and typed into.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cairn_tests::{
    paths,
    process::{Process, Program},
};
use serde_json::{Value, json};
use thirtyfour::{
    By, ChromiumLikeCapabilities as _, DesiredCapabilities, WebDriver, error::WebDriverErrorInner,
};

/// Width and height of the page.
pub(crate) type Size = (u32, u32);
pub(crate) const WIDE: Size = (1280, 900);
pub(crate) const PHONE: Size = (390, 844);

const START: Duration = Duration::from_secs(30);
/// Less than the time after which a page looks again by itself: what it shows by then, an event brought.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--ignore-certificate-errors",
    "--hide-scrollbars",
];
/// Runs in every page before the page's own scripts.
const WITNESS: &str = "window.violations = [];
    addEventListener('securitypolicyviolation', (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`), true);
    addEventListener('error', (e) => violations.push(String(e.message)));
    addEventListener('unhandledrejection', (e) => violations.push(String(e.reason)));";

/// Says what axe-core found, or that it failed.
const AXE: &str = "const done = arguments[arguments.length - 1];
    const bad = (found) => found.violations.filter((it) => ['serious', 'critical'].includes(it.impact));
    const said = (it) => it.nodes.map((node) => `${it.id} (${it.impact}): ${node.target} ${node.failureSummary}`);
    axe.run(document, { resultTypes: ['violations'] })
        .then((found) => done(bad(found).flatMap(said)), (error) => done([String(error)]));";

pub(crate) struct Browser {
    // In this order: the browser is told to end before its driver goes.
    driver: WebDriver,
    _chromedriver: Process,
    screenshots: PathBuf,
    /// That it was started with.
    size: Size,
}

impl Browser {
    pub(crate) async fn start(dir: &Path, size: Size) -> Self {
        // The driver's client has TLS compiled in and asks for a provider, though it speaks plain HTTP.
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let chromedriver = Program::new("chromedriver", "chromedriver")
            .args(["--port=0"])
            .env("HOME", dir)
            .start()
            .unwrap();
        let port = chromedriver.wait_for_line(r"successfully on port (\d+)", START).unwrap().groups
            [1]
        .clone();
        let mut wish = DesiredCapabilities::chrome();
        for flag in FLAGS {
            wish.add_arg(flag).unwrap();
        }
        wish.add_arg(&format!("--user-data-dir={}", dir.join("profile").display())).unwrap();
        let driver = WebDriver::new(format!("http://127.0.0.1:{port}"), wish).await.unwrap();
        let screenshots = paths::target().join("screenshots");
        fs::create_dir_all(&screenshots).unwrap();
        let browser = Self { driver, _chromedriver: chromedriver, screenshots, size };
        browser
            .command("Page.addScriptToEvaluateOnNewDocument", json!({ "source": WITNESS }))
            .await;
        browser.resize_back().await;
        browser
    }

    pub(crate) async fn quit(self) {
        self.driver.quit().await.unwrap();
    }

    pub(crate) async fn go(&self, url: &str) {
        self.driver.goto(url).await.unwrap();
    }

    pub(crate) async fn click(&self, css: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let click = async { self.driver.find(By::Css(css)).await?.click().await };
            // It may come a moment later, and a live part may be put in its place between the two.
            match click.await {
                Err(error)
                    if matches!(
                        *error,
                        WebDriverErrorInner::NoSuchElement(_)
                            | WebDriverErrorInner::StaleElementReference(_)
                    ) && Instant::now() < deadline =>
                {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                clicked => return clicked.unwrap(),
            }
        }
    }

    pub(crate) async fn type_into(&self, css: &str, text: &str) {
        self.driver.find(By::Css(css)).await.unwrap().send_keys(text).await.unwrap();
    }

    /// Gives a file input a file.
    pub(crate) async fn choose(&self, css: &str, file: &Path) {
        self.type_into(css, file.to_str().unwrap()).await;
    }

    /// Drops an empty file of this name, as from a folder.
    pub(crate) async fn drop_file(&self, css: &str, name: &str) {
        let script = "const [css, name] = arguments, files = new DataTransfer();
            files.items.add(new File([], name));
            const event = new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true });
            document.querySelector(css).dispatchEvent(event);";
        self.driver.execute(script, vec![json!(css), json!(name)]).await.unwrap();
    }

    /// Waits until what `css` selects shows `text`.
    pub(crate) async fn sees(&self, css: &str, text: &str) {
        self.sees_within(PATIENCE, css, text).await;
    }

    pub(crate) async fn sees_within(&self, patience: Duration, css: &str, text: &str) {
        let deadline = Instant::now() + patience;
        loop {
            let shown = self.shown(css).await;
            if shown.iter().any(|shown| shown.contains(text)) {
                return;
            }
            if Instant::now() > deadline {
                self.shoot("failed").await;
                panic!("{css} does not show {text:?} but {shown:?}");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The texts of what `css` selects, as they are read.
    async fn shown(&self, css: &str) -> Vec<String> {
        let mut texts = Vec::new();
        for element in self.driver.find_all(By::Css(css)).await.unwrap() {
            // An element can go between the two calls: then it shows nothing.
            texts.extend(element.prop("textContent").await.ok().flatten());
        }
        let plain = |text: &String| {
            text.split([' ', '\n', '\u{a0}'])
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>()
                .join(" ")
        };
        texts.iter().map(plain).collect()
    }

    /// Waits until `css` selects nothing.
    pub(crate) async fn sees_gone(&self, css: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.driver.find_all(By::Css(css)).await.unwrap().is_empty() {
            assert!(Instant::now() < deadline, "{css} is still there");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Puts `text` in the place of what is there.
    pub(crate) async fn fill(&self, css: &str, text: &str) {
        self.driver.find(By::Css(css)).await.unwrap().clear().await.unwrap();
        self.type_into(css, text).await;
    }

    /// What is read at the one place that `css` selects.
    pub(crate) async fn text(&self, css: &str) -> String {
        self.shown(css).await.remove(0)
    }

    pub(crate) async fn value(&self, css: &str) -> String {
        self.driver.find(By::Css(css)).await.unwrap().prop("value").await.unwrap().unwrap()
    }

    /// Leaves a mark in the page that only loading it again takes away.
    pub(crate) async fn mark(&self) {
        self.driver.execute("window.marked = true", vec![]).await.unwrap();
    }

    pub(crate) async fn is_marked(&self) -> bool {
        self.driver
            .execute("return window.marked === true", vec![])
            .await
            .unwrap()
            .convert()
            .unwrap()
    }

    /// Whether nothing sticks out to the right.
    pub(crate) async fn fits(&self) -> bool {
        let script =
            "return document.documentElement.scrollWidth <= document.documentElement.clientWidth";
        self.driver.execute(script, vec![]).await.unwrap().convert().unwrap()
    }

    /// What the page did against its policy, and its scripts' errors.
    pub(crate) async fn violations(&self) -> Vec<String> {
        self.driver.execute("return window.violations", vec![]).await.unwrap().convert().unwrap()
    }

    /// What axe-core finds on the page that is serious or critical: the rule, and where.
    pub(crate) async fn barriers(&self) -> Vec<String> {
        let script = paths::target().join("tools/axe/js/axe_playwright_python/axe.min.js");
        let axe = fs::read_to_string(&script).unwrap_or_else(|error| {
            panic!("{}: {error}: run `cargo xtask setup`", script.display())
        });
        self.driver.execute(&axe, vec![]).await.unwrap();
        let found = self.driver.execute_async(AXE, vec![]).await.unwrap();
        found.convert().unwrap()
    }

    /// Shows all that a click would show in front of the page, or in it.
    pub(crate) async fn unfold(&self) {
        let script = "for (const it of document.querySelectorAll('[popover]')) it.removeAttribute('popover');
            for (const it of document.querySelectorAll('details')) it.open = true;";
        self.driver.execute(script, vec![]).await.unwrap();
    }

    /// The buttons on the page that can be seen and would change something, by what they say.
    pub(crate) async fn levers(&self) -> Vec<String> {
        let script = "const all = document.querySelectorAll('main form:not([method=get]) button, main [popovertarget]');
            return [...all].filter((it) => it.checkVisibility()).map((it) => it.textContent);";
        self.driver.execute(script, vec![]).await.unwrap().convert().unwrap()
    }

    /// Puts a field without a name into the page.
    pub(crate) async fn spoil(&self) {
        let script = "document.querySelector('main').append(document.createElement('input'))";
        self.driver.execute(script, vec![]).await.unwrap();
    }

    pub(crate) async fn resize(&self, (width, height): Size) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.command("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// To the size that it was started with.
    pub(crate) async fn resize_back(&self) {
        self.resize(self.size).await;
    }

    pub(crate) async fn dark(&self, is: bool) {
        let value = if is { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
        self.command("Emulation.setEmulatedMedia", features).await;
    }

    pub(crate) async fn scripts(&self, run: bool) {
        self.command("Emulation.setScriptExecutionDisabled", json!({ "value": !run })).await;
    }

    /// Keeps what is on the screen as `target/screenshots/NAME.png`.
    pub(crate) async fn shoot(&self, name: &str) {
        let screen = if self.size == PHONE { "on-phone-" } else { "" };
        let file = self.screenshots.join(format!("{screen}{name}.png"));
        self.driver.screenshot(&file).await.unwrap();
    }

    async fn command(&self, command: &str, params: Value) {
        self.driver.cdp().send_raw(command, params).await.unwrap();
    }
}
