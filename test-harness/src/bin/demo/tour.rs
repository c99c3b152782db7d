//! How the tour looks: numbered steps, what was sent, what came out.

use std::io::{IsTerminal, stdout};

use anyhow::{Context, Result};
use owo_colors::{OwoColorize, Style};
use serde_json::{Map, Value};
use test_harness::{Envoy, Headers, Request, Response, Upstream};

/// A walk before one Envoy and one upstream.
pub(crate) struct Tour<'a> {
    pub(crate) envoy: &'a Envoy,
    upstream: &'a Upstream,
    coloured: bool,
    step: std::cell::Cell<u32>,
}

/// What a request became.
pub(crate) struct Shown {
    pub(crate) response: Response,
    pub(crate) upstream: Option<Headers>,
    pub(crate) log: Map<String, Value>,
}

impl<'a> Tour<'a> {
    pub(crate) async fn new(envoy: &'a Envoy, upstream: &'a Upstream) -> Result<Tour<'a>> {
        let coloured = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let tour = Tour { envoy, upstream, coloured, step: 0.into() };
        let version = envoy.version().await?;
        let version = version.split('/').nth(1).unwrap_or(&version);
        tour.line(Style::new().bold(), &format!("mesh-filters in Envoy {version}, two workers, one upstream"));
        Ok(tour)
    }

    fn line(&self, style: Style, text: &str) {
        if self.coloured { println!("{}", text.style(style)) } else { println!("{text}") }
    }

    /// A heading, and a line or two that say what to look at.
    pub(crate) fn step(&self, title: &str, about: &str) {
        self.step.set(self.step.get() + 1);
        println!();
        self.line(Style::new().bold().cyan(), &format!("{}. {title}", self.step.get()));
        self.line(Style::new().dimmed(), &format!("   {about}"));
    }

    /// A row: what it is, and what it says.
    pub(crate) fn row(&self, what: &str, value: &str) {
        for (index, line) in value.lines().enumerate() {
            let what = if index == 0 { what } else { "" };
            if self.coloured {
                println!("   {:<13} {line}", what.yellow());
            } else {
                println!("   {what:<13} {line}");
            }
        }
    }

    /// Sends a GET and shows it, the headers that the upstream got of those whose names begin as given, and the access
    /// log's line.
    pub(crate) async fn send(&self, listener: &str, headers: &[(&str, &str)], look_at: &[&str]) -> Result<Shown> {
        self.send_to(listener, "/hello", headers, look_at).await
    }

    /// The same to another path, which the upstream is shown to get as well.
    pub(crate) async fn send_to(
        &self,
        listener: &str,
        path: &str,
        headers: &[(&str, &str)],
        look_at: &[&str],
    ) -> Result<Shown> {
        drop(self.upstream.take());
        let lines = self.envoy.access_log(listener).len();
        let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(name, value));
        self.row("sent", &curl(self.envoy, listener, path, headers));
        let response = self.envoy.send(listener, &request).await?;
        let received = self.upstream.take().into_iter().next().map(|received| received.request);
        let path = received.iter().filter(|_| path != "/hello").map(|request| request.path.clone());
        let headers = received.iter().flat_map(|request| shown(&request.headers, look_at));
        let got: Vec<String> = path.chain(headers).collect();
        let upstream = received.map(|request| request.headers);
        let nothing = if upstream.is_none() { "nothing" } else { "none of these headers" };
        self.row("upstream got", &if got.is_empty() { nothing.into() } else { got.join("\n") });
        let log = self.envoy.wait_for_json(listener, lines + 1).await?.pop().context("no line in the access log")?;
        self.row("access log", &serde_json::to_string(&log)?);
        Ok(Shown { response, upstream, log })
    }

    /// The end, with everything stopped.
    pub(crate) fn end(&self) {
        println!();
        self.line(Style::new().bold().green(), "Done: Envoy and the upstream are stopped.");
        println!("`make demo KEEP=1` leaves them running, with lines to try.");
    }

    /// The end, with everything left running.
    pub(crate) fn kept(&self, lines: &[String]) {
        println!();
        self.line(Style::new().bold().green(), "Envoy goes on running. To try:");
        lines.iter().for_each(|line| println!("  {line}"));
        println!("Ctrl-C stops it.");
    }
}

/// Headers whose names begin in one of these ways, as lines.
pub(crate) fn shown(headers: &Headers, look_at: &[&str]) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    headers
        .iter()
        .map(|(name, value)| (text(name), text(value)))
        .filter(|(name, _)| look_at.iter().any(|start| name.starts_with(start)))
        .map(|(name, value)| format!("{name}: {value}"))
        .collect()
}

/// The request as a line that can be pasted into a shell.
pub(crate) fn curl(envoy: &Envoy, listener: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("-H '{name}: {value}' ")).collect();
    let url = format!("http://{}{path}", envoy.addr(listener));
    // What a shell would take for its own.
    let quote = if path.contains(['&', '?', ';', '*']) { "'" } else { "" };
    format!("curl {headers}{quote}{url}{quote}")
}
