//! Logs of a service that is healthy, turns slow, and recovers. All of it is made up, and the same for the same seed.

use jiff::Timestamp;

/// One request.
pub struct Made {
    pub begin_ms: u64,
    pub duration_ms: u64,
    pub status: u16,
    pub flags: &'static str,
}

/// 2026-03-02T10:00:00Z.
pub const BEGIN_MS: u64 = 1_772_445_600_000;

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// Fifty minutes with a request every `every_ms` or so: ten healthy ones, thirty in which three of four take 0.6 to 2.4 s
/// and one of six fails, with two well minutes in the middle of them, and ten healthy ones. In the order of their ends, as
/// a proxy writes them.
pub fn half_hour(seed: u64, every_ms: u64) -> Vec<Made> {
    let mut random = Random(seed);
    let mut all = vec![];
    let mut at = 0;
    while at < 50 * 60_000 {
        at += every_ms / 2 + random.below(every_ms);
        let minute = at / 60_000;
        let sick = (10..40).contains(&minute) && !(24..26).contains(&minute);
        let slow = sick && random.below(4) < 3;
        let duration_ms = if slow { 600 + random.below(1800) } else { 20 + random.below(120) };
        let (status, flags) = match random.below(if sick { 6 } else { 60 }) {
            0 if sick && random.below(2) == 0 => (504, "UT"),
            0 if sick => (503, "UC"),
            0 => (500, "-"),
            1 if random.below(12) == 0 => (0, "DC"),
            _ => (200, "-"),
        };
        all.push(Made { begin_ms: BEGIN_MS + at, duration_ms, status, flags });
    }
    all.sort_by_key(|made| made.begin_ms + made.duration_ms);
    all
}

fn moment(ms: u64) -> String {
    format!("{:.3}", Timestamp::from_millisecond(ms.try_into().unwrap()).unwrap())
}

/// Envoy's JSON.
pub fn json(all: &[Made]) -> String {
    let line = |made: &Made| {
        let Made { begin_ms, duration_ms, status, flags } = made;
        let time = moment(*begin_ms);
        format!(
            "{{\"start_time\":\"{time}\",\"duration\":{duration_ms},\"response_code\":{status},\
             \"response_flags\":\"{flags}\",\"upstream_cluster\":\"outbound|80||payment-service\"}}\n"
        )
    };
    all.iter().map(line).collect()
}

/// JSON with other names, and times as numbers.
pub fn numbers(all: &[Made]) -> String {
    let line = |made: &Made| {
        let Made { begin_ms, duration_ms, status, flags } = made;
        format!(
            "{{\"ts\":{begin_ms}000,\"latency\":{{\"total_us\":{duration_ms}000}},\"status\":\"{status}\",\
             \"flags\":\"{flags}\",\"authority\":\"payment-service:8080\"}}\n"
        )
    };
    all.iter().map(line).collect()
}

/// Envoy's text.
pub fn envoy(all: &[Made]) -> String {
    let line = |made: &Made| {
        let Made { begin_ms, duration_ms, status, flags } = made;
        let time = moment(*begin_ms);
        format!(
            "[{time}] \"POST /pay HTTP/1.1\" {status} {flags} 12 91 {duration_ms} - \"-\" \"shop/1.0 (made up)\" \
             \"5c1f\" \"payment-service:8080\" \"10.0.0.7:8080\"\n"
        )
    };
    all.iter().map(line).collect()
}

/// Istio's text.
pub fn istio(all: &[Made]) -> String {
    let line = |made: &Made| {
        let Made { begin_ms, duration_ms, status, flags } = made;
        let time = moment(*begin_ms);
        let details = if *flags == "-" { "via_upstream" } else { "-" };
        format!(
            "[{time}] \"POST /pay HTTP/1.1\" {status} {flags} {details} - \"-\" 12 91 {duration_ms} - \"-\" \
             \"shop/1.0 (made up)\" \"5c1f\" \"payment-service\" \"10.0.0.7:8080\" outbound|80||payment-service \
             10.0.0.1:4711 10.0.0.2:80 10.0.0.3:4712 - default\n"
        )
    };
    all.iter().map(line).collect()
}
