//! What a filter costs: processor time of a real Envoy per request, paired. What a module costs before the first request,
//! and to keep: [`footprint`]. How fast bodies pass: [`bodies`].
//!
//! One Envoy with one worker has a listener for every arm, and one of them has no filter. The client visits them in
//! rounds, every round in a new random order; a visit sends a batch of requests, one after the other, on a connection of
//! its own, so that where a connection happens to lie in memory is chance and not a property of the arm. What counts is the time that Envoy's threads ran (the kernel's `schedstat`), not the time that passed, so
//! the client costs nothing. Client and Envoy share one core: neither waits for the other to wake up elsewhere, and
//! caches stay as they are. A machine that is slower for a while slows all arms of a round; so the difference within
//! each round is taken first, and then the median over all rounds, with the 99 % interval of a bootstrap over rounds.
//!
//! The second listener without a filter, the twin, must have zero in its interval: [`Report::check`]. An undisturbed run
//! misses it once in a hundred times, and is then to be repeated.

pub mod bodies;
pub mod footprint;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use owo_colors::{OwoColorize, Style};
use serde::Serialize;
use serde_json::{Value, json};

use crate::wire::{Headers, Request};
use crate::{Envoy, HttpFilter, Listener, PATIENCE, Route, root};

/// What is measured.
#[derive(Clone, Debug)]
#[must_use]
pub struct Arm {
    name: String,
    group: String,
    filters: Vec<HttpFilter>,
    repeat: usize,
    headers: Headers,
    less: Vec<HttpFilter>,
    times: usize,
    upstream: bool,
    versus: Option<String>,
    goal: Option<f64>,
    ours: bool,
}

impl Arm {
    /// An arm without filters, among those that are shown together.
    pub fn new(group: &str, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            group: group.to_owned(),
            filters: Vec::new(),
            repeat: 1,
            headers: Headers::default(),
            less: Vec::new(),
            times: 1,
            upstream: false,
            versus: None,
            goal: None,
            ours: false,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Appends a filter to those that are measured.
    pub fn filter(mut self, filter: HttpFilter) -> Self {
        self.filters.push(filter);
        self
    }

    /// Places the filters so many times, and divides the cost by it. What only the first wasm or Lua filter of a chain
    /// pays is then hardly counted. For filters that do the same each time they run.
    pub fn repeat(mut self, times: usize) -> Self {
        self.repeat = times.max(1);
        self
    }

    /// Appends header fields to the request. The listener without a filter that is subtracted gets them as well.
    pub fn headers(mut self, fields: impl Into<Headers>) -> Self {
        for (name, value) in fields.into().iter() {
            self.headers.push(name, value);
        }
        self
    }

    /// Subtracts a listener with this filter, in place of one without, and takes the difference for what so many times of
    /// the same cost.
    pub fn less(mut self, filter: HttpFilter, times: usize) -> Self {
        (self.less, self.times) = (vec![filter], times.max(1));
        self
    }

    /// Sends its requests on to another Envoy, whose time is not counted, instead of answering them: for filters that ask
    /// how the upstream was.
    pub fn upstream(mut self) -> Self {
        self.upstream = true;
        self
    }

    /// Gives the cost also as a ratio to that of another arm.
    pub fn versus(mut self, arm: &str) -> Self {
        self.versus = Some(arm.to_owned());
        self
    }

    /// Says what that ratio is to be at most.
    pub fn goal(mut self, ratio: f64) -> Self {
        self.goal = Some(ratio);
        self
    }

    /// Marks what this project makes, beside what it is compared with.
    pub fn ours(mut self) -> Self {
        self.ours = true;
        self
    }
}

/// How long and how is measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// How often every arm is visited.
    pub rounds: usize,
    /// Requests per visit.
    pub batch: u32,
    /// Seed of the order of arms and of the bootstrap.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { rounds: 300, batch: 200, seed: 1 }
    }
}

/// A median and its 99 % interval; where it is said, the least and the most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What one arm costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What it is shown together with.
    pub group: String,
    /// The arm's name.
    pub name: String,
    /// µs of processor time per request that its filters add, divided by how often they are placed.
    pub cost: Estimate,
    /// The arm it is compared with, and the ratio to that one's cost.
    pub ratio: Option<(String, Estimate)>,
    /// What the ratio is to be at most.
    pub goal: Option<f64>,
    /// Whether this project makes it.
    pub ours: bool,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Envoy's version.
    pub envoy: String,
    /// How it was measured.
    pub settings: Settings,
    /// How many headers a request has.
    pub headers: usize,
    /// µs of processor time of a whole request without filters.
    pub bare: Estimate,
    /// What the second listener without a filter seems to cost: the error of the measurement.
    pub twin: Estimate,
    /// The arms.
    pub rows: Vec<Row>,
}

/// A listener of the benchmark.
struct Lane {
    name: String,
    filters: Vec<HttpFilter>,
    headers: Headers,
    upstream: bool,
}

/// A [`Lane`] of the running Envoy.
struct Target {
    name: String,
    addr: SocketAddr,
    request: Vec<u8>,
}

/// The difference that gives an arm's cost: its lane, the lane that is subtracted, and by what the rest is divided.
struct Pair {
    lane: usize,
    minus: usize,
    by: f64,
}

/// Ten, with `host`: what a browser sends to an API.
/// The header fields of each request.
pub const HEADERS: [(&str, &str); 10] = [
    ("host", "shop.example.com"),
    (
        "user-agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    ),
    ("accept", "application/json, text/plain, */*"),
    ("accept-language", "en-GB,en;q=0.9,de;q=0.8"),
    ("accept-encoding", "gzip, deflate, br"),
    ("authorization", "Bearer Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4"),
    ("cookie", "session=0f8fad5b-d9cb-469f-a165-70867728950e; theme=dark"),
    ("referer", "https://shop.example.com/cart"),
    ("cache-control", "no-cache"),
    ("x-tenant-id", "tenant-42"),
];
/// Where it goes.
pub const PATH: &str = "/api/v1/orders/1234?expand=items";

/// A configuration of `test-harness/bench`.
///
/// # Errors
/// When it is not there, or is no JSON.
pub fn configuration(name: &str) -> Result<Value> {
    let path = root().join(format!("test-harness/bench/{name}.json"));
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

const BARE: usize = 0;
const TWIN: usize = 1;

/// Measures the arms, and tells after each round how many there were. Takes about 30 µs for each request, in all rounds
/// and arms.
///
/// # Errors
/// When Envoy does not start, or a request is not answered with 200 and the body `ok`.
pub async fn run(arms: &[Arm], settings: Settings, told: impl Fn(usize) + Send + 'static) -> Result<Report> {
    ensure!(settings.rounds > 0 && settings.batch > 0, "nothing to measure: {settings:?}");
    let bare = |name: &str| {
        let (filters, headers) = Default::default();
        Lane { name: name.to_owned(), filters, headers, upstream: false }
    };
    let mut lanes = vec![bare("no filter"), bare("no filter, again")];
    let pairs: Vec<Pair> = arms.iter().map(|arm| pair(arm, &mut lanes)).collect();

    let answer = || Route::respond(200, "ok");
    let upstream = Envoy::builder().concurrency(1).listener(Listener::http("upstream").route(answer())).start().await?;
    let mut builder = Envoy::builder()
        .concurrency(1)
        .cluster("upstream", upstream.addr("upstream"))
        .log_level("warning")
        // What Envoy does now and then for itself falls into some visit: as rarely as it can be set.
        .merge_bootstrap(json!({ "stats_flush_interval": "299s" }));
    for (at, lane) in lanes.iter().enumerate() {
        let route = if lane.upstream { Route::cluster("upstream") } else { answer() };
        let listener = Listener::http(&at.to_string()).route(route);
        builder = builder.listener(lane.filters.iter().cloned().fold(listener, Listener::filter));
    }
    let envoy = builder.start().await?;
    let version = envoy.version().await?;

    let target = |(at, lane): (usize, &Lane)| Target {
        name: lane.name.clone(),
        addr: envoy.addr(&at.to_string()),
        request: Request::get(PATH).headers(HEADERS).headers(lane.headers.clone()).to_bytes(),
    };
    let targets: Vec<Target> = lanes.iter().enumerate().map(target).collect();
    let (pid, with) = (envoy.pid(), settings.clone());
    // A thread of its own, because it is bound to a core and blocks.
    let measured = tokio::task::spawn_blocking(move || {
        thread::spawn(move || measure(pid, &targets, &with, told)).join().expect("the measuring thread does not panic")
    });
    let log = |error| anyhow!("{error:#}\n--- Envoy's log:\n{}", envoy.log());
    let samples = measured.await?.map_err(log)?;
    Ok(report(version, settings, arms, &pairs, &samples))
}

/// Finds the arm's two lanes, or adds them.
fn pair(arm: &Arm, lanes: &mut Vec<Lane>) -> Pair {
    let lane = |name, filters| Lane { name, filters, headers: arm.headers.clone(), upstream: arm.upstream };
    let subtracted = lane(format!("what is subtracted from: {}", arm.name), arm.less.clone());
    let same = |lane: &Lane| {
        lane.filters == arm.less && lane.headers == subtracted.headers && lane.upstream == subtracted.upstream
    };
    let minus = lanes.iter().position(same).unwrap_or_else(|| {
        lanes.push(subtracted);
        lanes.len() - 1
    });
    let filters = std::iter::repeat_n(&arm.filters, arm.repeat).flatten().cloned().collect();
    lanes.push(lane(arm.name.clone(), filters));
    Pair { lane: lanes.len() - 1, minus, by: (arm.repeat * arm.times) as f64 }
}

/// µs per request, for every round and lane.
fn measure(pid: u32, targets: &[Target], settings: &Settings, told: impl Fn(usize)) -> Result<Vec<Vec<f64>>> {
    let core = last_core()?;
    bind(0, core)?;
    for task in tasks(pid)? {
        bind(task, core)?;
    }
    let mut random = Random(settings.seed);
    let mut order: Vec<usize> = (0..targets.len()).collect();
    let mut samples = Vec::with_capacity(settings.rounds);
    // The first round warms everything up, and is not kept.
    for done in 0..=settings.rounds {
        random.shuffle(&mut order);
        let mut round = vec![0.0; targets.len()];
        for &lane in &order {
            let Target { name, addr, request } = &targets[lane];
            let mut connection = connect(*addr)?;
            let mut send = |times| exchange(&mut connection, request, times).with_context(|| name.clone());
            // Into the caches, which were another arm's; and until the connection before this one is tidied up.
            send(settings.batch / 10 + 1)?;
            let before = ran(pid)?;
            send(settings.batch)?;
            let spent = ran(pid)?.checked_sub(before).context("a thread of Envoy ended")?;
            round[lane] = spent as f64 / 1000.0 / f64::from(settings.batch);
        }
        samples.push(round);
        told(done);
    }
    samples.remove(0);
    Ok(samples)
}

fn connect(addr: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, request: &[u8], times: u32) -> Result<()> {
    let mut buffer = [0; 4096];
    for _ in 0..times {
        stream.write_all(request)?;
        let mut length = 0;
        while !buffer[..length].ends_with(b"\r\n\r\nok") {
            match stream.read(&mut buffer[length..]) {
                Ok(got) if got > 0 => length += got,
                end => bail!("no whole 200, but {end:?} after: {}", buffer[..length].escape_ascii()),
            }
        }
        ensure!(buffer.starts_with(b"HTTP/1.1 200 "), "not 200: {}", buffer[..length].escape_ascii());
    }
    Ok(())
}

fn tasks(pid: u32) -> Result<Vec<i32>> {
    let dir = fs::read_dir(format!("/proc/{pid}/task")).context("Envoy's threads")?;
    dir.map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?)).collect()
}

/// Nanoseconds that the threads of this process have run.
fn ran(pid: u32) -> Result<u64> {
    // On the one core, the client may run again while the worker still tidies up after the answer: let it come to rest.
    thread::sleep(Duration::from_micros(300));
    let mut sum = 0;
    for task in tasks(pid)? {
        let path = format!("/proc/{pid}/task/{task}/schedstat");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let time = text.split(' ').next().and_then(|time| time.parse::<u64>().ok());
        sum += time.with_context(|| format!("{path}: {text:?}"))?;
    }
    Ok(sum)
}

fn last_core() -> Result<usize> {
    let status = fs::read_to_string("/proc/self/status")?;
    let list =
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).context("no Cpus_allowed_list")?;
    let last = list.trim().rsplit([',', '-']).next().unwrap_or_default();
    last.parse().with_context(|| format!("Cpus_allowed_list: {list}"))
}

/// Binds a thread to a core; 0 is the calling one.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "std has no way to bind a thread to a core")]
fn bind(task: i32, core: usize) -> Result<()> {
    ensure!(core < libc::CPU_SETSIZE as usize, "core {core} is beyond what a cpu_set_t can hold");
    // SAFETY: `cpu_set_t` is an array of integers, for which zero is valid; the call reads it and keeps no pointer.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(task, size_of_val(&set), &raw const set)
    };
    if result != 0 {
        bail!("binding thread {task} to core {core}: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn bind(_: i32, _: usize) -> Result<()> {
    bail!("the benchmark needs Linux")
}

/// SplitMix64: small, seeded, and good enough to shuffle.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((mixed ^ (mixed >> 31)) as u128 * bound as u128) >> 64) as usize
    }

    fn shuffle(&mut self, items: &mut [usize]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

fn report(envoy: String, settings: Settings, arms: &[Arm], pairs: &[Pair], samples: &[Vec<f64>]) -> Report {
    let mut random = Random(settings.seed ^ u64::MAX);
    let rounds: Vec<usize> = (0..samples.len()).collect();
    let resamples: Vec<Vec<usize>> =
        (0..2000).map(|_| rounds.iter().map(|_| random.below(rounds.len())).collect()).collect();
    let estimate = |value: &dyn Fn(&[usize]) -> f64| {
        let mut spread: Vec<f64> = resamples.iter().map(|resample| value(resample)).collect();
        spread.sort_by(f64::total_cmp);
        Estimate {
            median: value(&rounds),
            low: spread[spread.len() * 5 / 1000],
            high: spread[spread.len() * 994 / 1000],
        }
    };
    let cost = |pair: &Pair, rounds: &[usize]| {
        median(rounds.iter().map(|round| samples[*round][pair.lane] - samples[*round][pair.minus]).collect()) / pair.by
    };
    let rows = arms.iter().zip(pairs).map(|(arm, pair)| {
        let versus = arm.versus.as_ref().and_then(|name| arms.iter().position(|other| other.name == *name));
        let ratio = versus.map(|other| {
            let ratio = estimate(&|rounds| cost(pair, rounds) / cost(&pairs[other], rounds));
            (arms[other].name.clone(), ratio)
        });
        Row {
            group: arm.group.clone(),
            name: arm.name.clone(),
            cost: estimate(&|rounds| cost(pair, rounds)),
            ratio,
            goal: arm.goal,
            ours: arm.ours,
        }
    });
    Report {
        envoy,
        bare: estimate(&|rounds| median(rounds.iter().map(|round| samples[*round][BARE]).collect())),
        twin: estimate(&|rounds| cost(&Pair { lane: TWIN, minus: BARE, by: 1.0 }, rounds)),
        rows: rows.collect(),
        headers: HEADERS.len(),
        settings,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

impl Report {
    /// The row of that arm, if it was measured.
    #[must_use]
    pub fn row(&self, arm: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == arm)
    }

    /// Whether the measurement can be believed: the twin's interval includes zero.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check(&self) -> Result<()> {
        ensure!(
            (self.twin.low..=self.twin.high).contains(&0.0),
            "a listener without a filter seems to cost {} µs: something disturbed the measurement",
            span(self.twin)
        );
        Ok(())
    }

    /// An aligned table for a terminal.
    #[must_use]
    pub fn table(&self, coloured: bool) -> String {
        let row = |name: &str, cost: Estimate| [name.to_owned(), span(cost), String::new(), String::new()];
        let mut cells = vec![
            ["", "µs per request", "ratio", "to"].map(str::to_owned),
            row("whole request, no filter", self.bare),
            row("the same again, as the difference", self.twin),
        ];
        let ratio = |ratio: &Option<(String, Estimate)>| {
            ratio.as_ref().map_or_else(Default::default, |(name, ratio)| (span(*ratio), name.clone()))
        };
        cells.extend(self.rows.iter().map(|row| {
            let (ratio, versus) = ratio(&row.ratio);
            [row.name.clone(), span(row.cost), ratio, versus]
        }));
        // Only what the whole interval says has a colour.
        let verdict = |at: usize| {
            let ratio = at.checked_sub(3).and_then(|arm| self.rows[arm].ratio.as_ref());
            match ratio {
                Some((_, ratio)) if ratio.high < 1.0 => Style::new().green(),
                Some((_, ratio)) if ratio.low > 1.0 => Style::new().red(),
                Some(_) => Style::new().yellow(),
                None => Style::new(),
            }
        };
        let styles = |at| [Style::new(), Style::new().cyan(), verdict(at), Style::new().dimmed()];
        let Settings { rounds, batch, seed } = self.settings;
        let caption = format!(
            "Envoy {}, one worker, direct_response, a request of {} headers; processor time in µs per request, \
             median [99 %] of {rounds} rounds of {batch} requests, seed {seed}",
            self.envoy, self.headers,
        );
        format!("{caption}\n\n{}", aligned(&cells, coloured, styles))
    }
}

/// Columns of equal width; the first row is the head.
fn aligned<const N: usize>(cells: &[[String; N]], coloured: bool, styles: impl Fn(usize) -> [Style; N]) -> String {
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for (at, row) in cells.iter().enumerate() {
        let styles = if at == 0 { [Style::new().bold(); N] } else { styles(at) };
        let cell = |column: usize| {
            let text = format!("{:<1$}", row[column], widths[column]);
            if coloured { text.style(styles[column]).to_string() } else { text }
        };
        let line: [String; N] = std::array::from_fn(cell);
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
    out
}

fn span(Estimate { median, low, high }: Estimate) -> String {
    format!("{median:.2} [{low:.2}, {high:.2}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_medians_of_paired_differences() {
        // The machine slows down from round to round; the filter always costs 2, and three of the other kind 9.
        let samples: Vec<Vec<f64>> =
            (0..50).map(f64::from).map(|slow| vec![slow, slow, slow + 2.0, slow + 9.0]).collect();
        let new = |name| Arm::new("g", name);
        let arms = [new("two").versus("three"), new("three").repeat(3), new("alone").versus("none")];
        let pairs = [(2, 1.0), (3, 3.0), (2, 1.0)].map(|(lane, by)| Pair { lane, minus: BARE, by });
        let settings = Settings { rounds: 50, batch: 1, seed: 7 };
        let report = report("1.2.3".to_owned(), settings, &arms, &pairs, &samples);
        let sure = |median| Estimate { median, low: median, high: median };
        assert_eq!(report.row("two").unwrap().cost, sure(2.0));
        assert_eq!(report.row("three").unwrap().cost, sure(3.0));
        assert_eq!(report.row("two").unwrap().ratio, Some(("three".to_owned(), sure(2.0 / 3.0))));
        assert_eq!(report.row("alone").unwrap().ratio, None, "what was not measured is not compared with");
        assert_eq!((report.bare.median, report.twin), (24.5, sure(0.0)));
        assert!(report.bare.low < 24.5 && report.bare.high > 24.5);
        report.check().unwrap();
        assert!(
            report.table(false).contains("\ntwo                                2.00 [2.00, 2.00]"),
            "{}",
            report.table(false)
        );
        assert!(!report.table(false).contains('\u{1b}') && report.table(true).contains('\u{1b}'));
    }

    #[test]
    fn a_twin_whose_interval_leaves_zero_out_is_told() {
        let twin = |high| {
            let samples: Vec<Vec<f64>> = (0..50).map(|at| vec![1.0, if at % 10 == 0 { 1.0 } else { high }]).collect();
            report("1.2.3".to_owned(), Settings { rounds: 50, batch: 1, seed: 7 }, &[], &[], &samples)
        };
        twin(1.0).check().unwrap();
        assert!(twin(1.001).check().unwrap_err().to_string().contains("disturbed"));
    }

    #[test]
    fn arms_share_the_listener_that_is_subtracted() {
        let lua = |script: &str| HttpFilter::lua("l", script);
        let mut lanes = Vec::new();
        for arm in [
            Arm::new("g", "a").filter(lua("1")),
            Arm::new("g", "b").filter(lua("2")).repeat(2),
            Arm::new("g", "c").filter(lua("1")).headers([("x", "y")]),
            Arm::new("g", "d").filter(lua("1")).less(lua("0"), 10),
            Arm::new("g", "e").filter(lua("1")).upstream(),
            Arm::new("g", "f").filter(lua("2")).upstream(),
        ] {
            pair(&arm, &mut lanes);
        }
        let shape: Vec<(usize, usize)> = lanes.iter().map(|lane| (lane.filters.len(), lane.headers.len())).collect();
        assert_eq!(shape, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (1, 0), (1, 0), (0, 0), (1, 0), (1, 0)]);
    }

    #[test]
    fn a_shuffle_keeps_everything_and_depends_on_the_seed() {
        let shuffled = |seed| {
            let mut items: Vec<usize> = (0..10).collect();
            Random(seed).shuffle(&mut items);
            items
        };
        assert_eq!(shuffled(1), shuffled(1));
        assert_ne!(shuffled(1), shuffled(2));
        let mut sorted = shuffled(1);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
    }
}
