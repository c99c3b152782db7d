//! Requests that are made of items: what is put where, in which encoding, with what around it.
//!
//! A [`Plan`] says it, and can be made smaller item by item; a [`Case`] is the request and its response as they pass a
//! proxy, for the engine alone or for the filter as a whole.

use super::leak::Canary;
use super::random::Random;

/// Where an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A segment of the path.
    Path,
    /// The value of a query's pair.
    Query,
    /// The name of a query's pair.
    QueryName,
    /// A header of the request, under the item's name.
    Header,
    /// `User-Agent`.
    UserAgent,
    /// A cookie.
    Cookie,
    /// The query of `Referer`.
    Referer,
    /// Who logs in, in the URL of `Referer`.
    RefererUser,
    /// The request's body.
    Body,
    /// A name in the request's body.
    BodyName,
    /// A header of the response, under the item's name.
    ResponseHeader,
    /// `Set-Cookie`.
    SetCookie,
    /// The query of `Location`.
    Location,
    /// A segment of the path of `Location`.
    LocationPath,
    /// The response's body.
    ResponseBody,
}

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// An object.
    Json,
    /// `application/x-www-form-urlencoded`.
    Form,
    /// `multipart/form-data`.
    Multipart,
    /// `text/plain`.
    Text,
}

/// Between the parts of a multipart body.
pub const BOUNDARY: &str = "----WebKitFormBoundary7MA4YWxkTrZu0gW";

impl BodyKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Json, Self::Form, Self::Multipart, Self::Text];

    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Form => "application/x-www-form-urlencoded",
            Self::Multipart => "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
            Self::Text => "text/plain; charset=utf-8",
        }
    }
}

/// How an item is written, as far as its place has such a way; else the plainest is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Only what has to be encoded there is.
    Plain,
    /// In URLs and forms: all but letters and digits, and `+` for a space in queries and forms.
    Percent,
    /// In URLs and forms every byte; in JSON every letter as `\u0061`.
    Every,
    /// In URLs and forms twice; in JSON some letters as `\u0061`.
    Twice,
    /// In JSON in a string; of a query's and a form's value too.
    Nested,
    /// In JSON in a string in JSON in a string.
    NestedTwice,
    /// In the query of a URL that is the value.
    Url,
    /// In the path of a URL that is the value, without a scheme or a query; fields are not covered there, and are plain.
    Path,
    /// Percent-encoded, whatever the place is.
    Word,
}

impl Encoding {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Plain,
        Self::Percent,
        Self::Every,
        Self::Twice,
        Self::Nested,
        Self::NestedTwice,
        Self::Url,
        Self::Path,
        Self::Word,
    ];
}

/// What becomes of an item.
#[derive(Clone, Debug)]
pub enum Fate {
    /// A rule has to cover this of it.
    Covered {
        /// The rule.
        rule: &'static str,
        /// What must be gone.
        secret: String,
    },
    /// It stays, byte for byte.
    Kept {
        /// What it is.
        kind: &'static str,
    },
}

/// One value somewhere.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where.
    pub place: Place,
    /// How it is written.
    pub encoding: Encoding,
    /// Its name, where it has one.
    pub name: String,
    /// What stands before it.
    pub before: String,
    /// The value.
    pub text: String,
    /// What stands after it.
    pub after: String,
    /// What becomes of it.
    pub fate: Fate,
}

/// What a body is broken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// It ends early.
    Cut,
    /// A byte comes in that does not belong there.
    Byte(u8),
    /// It nests too deep.
    Deep,
}

/// A request that can be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All that is in it.
    pub items: Vec<Item>,
    /// What the request's body is.
    pub request: BodyKind,
    /// What the response's body is.
    pub response: BodyKind,
    /// Whether bodies are broken, and how.
    pub broken: Option<Break>,
    /// Whether bodies come in parts.
    pub split: bool,
    /// Of what is chosen on the way.
    pub seed: u64,
}

/// Headers, in order.
pub type Headers = Vec<(String, Vec<u8>)>;

/// A request and its response as they pass a proxy.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// `GET`.
    pub method: String,
    /// `:path`.
    pub path_and_query: Vec<u8>,
    /// Without pseudo headers; names in lower case.
    pub request_headers: Headers,
    /// In the parts in which it comes.
    pub request_body: Vec<Vec<u8>>,
    /// Without pseudo headers; names in lower case.
    pub response_headers: Headers,
    /// In the parts in which it comes.
    pub response_body: Vec<Vec<u8>>,
    /// What must be nowhere.
    pub canaries: Vec<Canary>,
    /// What must be where it is, byte for byte, unless the body is broken.
    pub kept: Vec<Kept>,
}

/// What stays as it is.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What it is.
    pub kind: &'static str,
    /// As it was written there.
    pub written: Vec<u8>,
    /// Which part it is in.
    pub part: Part,
}

/// What is cleaned as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Path and query.
    Target,
    /// A header of the request, by name.
    RequestHeader(String),
    /// The request's body.
    RequestBody,
    /// A header of the response, by name.
    ResponseHeader(String),
    /// The response's body.
    ResponseBody,
}

impl Item {
    /// The part of the request that it is in.
    pub fn part(&self) -> Part {
        let request = |name: &str| Part::RequestHeader(name.into());
        let response = |name: &str| Part::ResponseHeader(name.into());
        match self.place {
            Place::Path | Place::Query | Place::QueryName => Part::Target,
            Place::Header => request(&self.header()),
            Place::UserAgent => request("user-agent"),
            Place::Cookie => request("cookie"),
            Place::Referer | Place::RefererUser => request("referer"),
            Place::Body | Place::BodyName => Part::RequestBody,
            Place::ResponseHeader => response(&self.header()),
            Place::SetCookie => response("set-cookie"),
            Place::Location | Place::LocationPath => response("location"),
            Place::ResponseBody => Part::ResponseBody,
        }
    }

    /// The name of the header, as people write such: `cardNumber` is `card-number`.
    fn header(&self) -> String {
        let mut name = String::new();
        let mut before = 'A';
        for letter in self.name.chars() {
            if letter.is_ascii_uppercase() && before.is_ascii_lowercase() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
            before = letter;
        }
        name
    }

    /// The name of what it is in: of a value in a value, only the inner one says what it is.
    fn outer(&self) -> &str {
        let is_inner = matches!(self.encoding, Encoding::Nested | Encoding::NestedTwice | Encoding::Url);
        if is_inner { "data" } else { &self.name }
    }

    fn whole(&self) -> String {
        format!("{}{}{}", self.before, self.text, self.after)
    }

    /// As a header has it.
    fn in_header(&self) -> String {
        match self.encoding {
            Encoding::Path => path(self),
            Encoding::Word => encode(&self.whole(), "", b""),
            _ => self.whole(),
        }
    }
}

/// What is being written, and where items are in it.
#[derive(Default)]
struct Written {
    bytes: Vec<u8>,
    spans: Vec<(usize, usize)>,
}

impl Written {
    fn put(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn item(&mut self, text: &str) -> Vec<u8> {
        let start = self.bytes.len();
        self.put(text);
        self.spans.push((start, self.bytes.len()));
        text.as_bytes().to_vec()
    }
}

impl Plan {
    /// Makes the request.
    pub fn case(&self) -> Case {
        let mut random = Random::new(self.seed, 1);
        let mut case = Case { method: "POST".into(), ..Case::default() };
        let mut written = |part: Part, item: &Item, bytes: Vec<u8>| match &item.fate {
            Fate::Covered { rule, secret } => {
                let covered = self.broken.is_some() && matches!(part, Part::RequestBody | Part::ResponseBody);
                // What says that they are secrets may be broken too.
                if !(covered && *rule == "field") {
                    case.canaries.push(Canary {
                        text: secret.clone(),
                        rule: (*rule).into(),
                        place: format!("{:?}, {:?}", item.place, item.encoding),
                    });
                }
            }
            Fate::Kept { kind } => case.kept.push(Kept { kind, written: bytes, part }),
        };
        let of = |place: Place| self.items.iter().filter(move |item| item.place == place);

        let mut target = Written::default();
        target.put("/api/v1");
        for item in of(Place::Path) {
            // The segment before says what it is.
            target.put(&format!("/{}/", item.name));
            let bytes = target.item(&segment(item));
            written(Part::Target, item, bytes);
        }
        let mut sign = "?";
        for item in self.items.iter().filter(|item| matches!(item.place, Place::Query | Place::QueryName)) {
            target.put(sign);
            sign = "&";
            let bytes = pair(&mut target, item);
            written(Part::Target, item, bytes);
        }
        case.path_and_query = target.bytes;

        let mut headers: Headers = vec![("content-type".into(), self.request.content_type().into())];
        for item in of(Place::Header) {
            headers.push((item.header(), item.in_header().into_bytes()));
            written(item.part(), item, item.text.clone().into_bytes());
        }
        for item in of(Place::UserAgent) {
            headers.push((
                "user-agent".into(),
                format!("Mozilla/5.0 (X11; Linux x86_64) app/1.2 ({})", item.whole()).into(),
            ));
            written(item.part(), item, item.text.clone().into_bytes());
        }
        let mut cookies = Written::default();
        for item in of(Place::Cookie) {
            cookies.put(if cookies.bytes.is_empty() { "theme=dark; " } else { "; " });
            cookies.put(&format!("{}=", encode(&item.name, "", b"")));
            let bytes = cookies.item(&cookie(item));
            written(item.part(), item, bytes);
        }
        if !cookies.bytes.is_empty() {
            headers.push(("cookie".into(), cookies.bytes));
        }
        let mut referer = Written::default();
        if let Some(item) = of(Place::RefererUser).next() {
            referer.put("https://");
            let bytes = referer.item(&encode(&item.text, "", b":"));
            referer.put("@shop.example/cart");
            written(item.part(), item, bytes);
        }
        if referer.bytes.is_empty() && of(Place::Referer).next().is_some() {
            referer.put("https://shop.example/cart");
        }
        let mut sign = "?";
        for item in of(Place::Referer) {
            referer.put(sign);
            sign = "&";
            let bytes = pair(&mut referer, item);
            written(item.part(), item, bytes);
        }
        if !referer.bytes.is_empty() {
            headers.push(("referer".into(), referer.bytes));
        }
        case.request_headers = headers;
        let body = self.items.iter().filter(|item| matches!(item.place, Place::Body | Place::BodyName));
        let body = self.body(self.request, body, Part::RequestBody, &mut written, &mut random);

        let mut response: Headers = vec![("content-type".into(), self.response.content_type().into())];
        for item in of(Place::ResponseHeader) {
            response.push((item.header(), item.in_header().into_bytes()));
            written(item.part(), item, item.text.clone().into_bytes());
        }
        for item in of(Place::SetCookie) {
            let mut header = Written::default();
            header.put(&format!("{}=", encode(&item.name, "", b"")));
            let bytes = header.item(&cookie(item));
            header.put("; Path=/; Max-Age=3600; HttpOnly");
            response.push(("set-cookie".into(), header.bytes));
            written(item.part(), item, bytes);
        }
        let mut location = Written::default();
        for item in of(Place::LocationPath) {
            location.put(&format!("/{}/", item.name));
            let bytes = location.item(&segment(item));
            written(item.part(), item, bytes);
        }
        let mut sign = if location.bytes.is_empty() { "https://login.example/?" } else { "?" };
        for item in of(Place::Location) {
            location.put(sign);
            sign = "&";
            let bytes = pair(&mut location, item);
            written(item.part(), item, bytes);
        }
        if !location.bytes.is_empty() {
            response.push(("location".into(), location.bytes));
        }
        case.response_headers = response;
        let response = self.body(self.response, of(Place::ResponseBody), Part::ResponseBody, &mut written, &mut random);
        case.request_body = self.parts(body, &mut random);
        case.response_body = self.parts(response, &mut random);
        case
    }

    fn body<'i>(
        &self,
        kind: BodyKind,
        items: impl Iterator<Item = &'i Item>,
        part: Part,
        written: &mut impl FnMut(Part, &Item, Vec<u8>),
        random: &mut Random,
    ) -> Vec<u8> {
        let mut body = Written::default();
        let mut nests = Vec::new();
        if kind == BodyKind::Json {
            body.put("{\"page\":1");
        }
        for item in items {
            let bytes = match kind {
                BodyKind::Json => {
                    body.put(",");
                    if random.percent(25) && nests.len() < 6 {
                        let (open, close) = *random.pick(&[("\"inner\":{\"n\":null,", "}"), ("\"list\":[0,{", "}]")]);
                        body.put(open);
                        nests.push(close);
                    }
                    member(&mut body, item, random)
                }
                BodyKind::Form => {
                    if !body.bytes.is_empty() {
                        body.put("&");
                    }
                    pair(&mut body, item)
                }
                BodyKind::Multipart => {
                    body.put(&format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\""));
                    // In a quoted name, as browsers write it.
                    let quoted = |text: &str| text.replace('"', "%22").replace('\n', "%0A");
                    if item.place == Place::BodyName {
                        let bytes = body.item(&quoted(&item.whole()));
                        body.put("\"\r\n\r\n1\r\n");
                        bytes
                    } else {
                        body.put(&format!("{}\"\r\n\r\n{}", quoted(&item.name), item.before));
                        let bytes = body.item(&item.text);
                        body.put(&format!("{}\r\n", item.after));
                        bytes
                    }
                }
                BodyKind::Text => {
                    let name = if item.place == Place::BodyName { "" } else { &item.name };
                    body.put(&format!("{name}{} {}", if name.is_empty() { "-" } else { ":" }, item.before));
                    let bytes = body.item(&item.text);
                    body.put(&format!("{}\n", item.after));
                    bytes
                }
            };
            written(part.clone(), item, bytes);
        }
        while let Some(close) = nests.pop() {
            body.put(close);
        }
        match kind {
            BodyKind::Json => body.put("}"),
            BodyKind::Multipart => body.put(&format!("--{BOUNDARY}--\r\n")),
            BodyKind::Form | BodyKind::Text => {}
        }
        match self.broken {
            None => body.bytes,
            Some(Break::Deep) if kind == BodyKind::Json => [b"[".repeat(600), body.bytes].concat(),
            Some(how) => {
                // Where no value is near: what is broken itself is none.
                let free = |at: usize| body.spans.iter().all(|(start, end)| at + 3 < *start || *end + 3 < at);
                let places: Vec<usize> = (0..body.bytes.len()).filter(|at| free(*at)).collect();
                let mut bytes = body.bytes.clone();
                if !places.is_empty() {
                    let at = *random.pick(&places);
                    match how {
                        Break::Byte(byte) => bytes.insert(at, byte),
                        _ => bytes.truncate(at),
                    }
                }
                bytes
            }
        }
    }

    fn parts(&self, body: Vec<u8>, random: &mut Random) -> Vec<Vec<u8>> {
        if !self.split || body.is_empty() {
            return vec![body];
        }
        let most = *random.pick(&[1, 3, 17, 200, 5000]);
        let (mut parts, mut rest) = (Vec::new(), body.as_slice());
        while !rest.is_empty() {
            let (part, after) = rest.split_at(random.within(1, most).min(rest.len()));
            parts.push(part.to_vec());
            rest = after;
        }
        parts
    }
}

/// Percent-encodes all but letters, digits, `-._~` and the signs that stay; a space becomes what is said, if anything.
fn encode(text: &str, space: &str, signs: &[u8]) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' if !space.is_empty() => out += space,
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || signs.contains(&byte) => {
                out.push(char::from(byte));
            }
            byte => out += &format!("%{byte:02X}"),
        }
    }
    out
}

fn every(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

fn segment(item: &Item) -> String {
    let text = item.whole();
    match item.encoding {
        Encoding::Percent => encode(&text, "", b""),
        Encoding::Every => every(&text),
        Encoding::Twice => encode(&encode(&text, "", b""), "", b""),
        _ => encode(&text, "", b"@:+!$'()*,=;"),
    }
}

fn cookie(item: &Item) -> String {
    let text = item.whole();
    match item.encoding {
        Encoding::Percent => encode(&text, "", b""),
        Encoding::Every => every(&text),
        Encoding::Twice => encode(&encode(&text, "", b""), "", b""),
        _ => encode(&text, "", b"@:+!$'()*=/"),
    }
}

/// `name=value`, as in queries and forms.
fn pair(out: &mut Written, item: &Item) -> Vec<u8> {
    let text = item.whole();
    if matches!(item.place, Place::QueryName | Place::BodyName) {
        let name = match item.encoding {
            Encoding::Every => every(&text),
            Encoding::Twice => encode(&encode(&text, "", b""), "", b""),
            _ => encode(&text, "+", b""),
        };
        let bytes = out.item(&name);
        out.put("=1");
        return bytes;
    }
    out.put(&format!("{}=", encode(item.outer(), "+", b"[]")));
    let value = match item.encoding {
        Encoding::Plain => encode(&text, "%20", b"@:/!$'(),*?"),
        Encoding::Percent => encode(&text, "+", b""),
        Encoding::Every => every(&text),
        Encoding::Twice => encode(&encode(&text, "+", b""), "", b""),
        Encoding::Nested | Encoding::NestedTwice => {
            encode(&format!("{{\"{}\":{}}}", item.name, quoted(&text)), "+", b"")
        }
        Encoding::Url => encode(&url(item), "", b""),
        Encoding::Path => encode(&path(item), "", b""),
        Encoding::Word => encode(&text, "", b""),
    };
    out.item(&value)
}

fn url(item: &Item) -> String {
    format!("https://other.example/a?b=1&{}={}", encode(&item.name, "+", b""), encode(&item.whole(), "%20", b""))
}

fn path(item: &Item) -> String {
    if matches!(item.fate, Fate::Covered { rule: "field", .. }) {
        return item.whole();
    }
    format!("/users/{}/{}", encode(&item.name, "", b""), encode(&item.whole(), "", b""))
}

/// A string in JSON, with what has to be escaped.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `"name": value`.
fn member(out: &mut Written, item: &Item, random: &mut Random) -> Vec<u8> {
    let text = item.whole();
    let escaped = |share: usize, random: &mut Random| {
        let mut out = String::from("\"");
        for letter in text.chars() {
            let code = u32::from(letter);
            if code < 32 || matches!(letter, '"' | '\\') || (code < 0x1_0000 && random.percent(share)) {
                out += &format!("\\u{code:04x}");
            } else {
                out.push(letter);
            }
        }
        out + "\""
    };
    let inner = format!("{{\"{}\":{}}}", item.name, quoted(&text));
    let value = match item.encoding {
        Encoding::Plain | Encoding::Percent => quoted(&text),
        Encoding::Every => escaped(100, random),
        Encoding::Twice => escaped(30, random),
        Encoding::Nested => quoted(&inner),
        Encoding::NestedTwice => quoted(&format!("[{}]", quoted(&inner))),
        Encoding::Url => quoted(&url(item)),
        Encoding::Path => quoted(&path(item)),
        Encoding::Word => quoted(&encode(&text, "", b"")),
    };
    if item.place == Place::BodyName {
        let bytes = out.item(&quoted(&text));
        out.put(": true");
        return bytes;
    }
    out.put(&format!("{}:", quoted(item.outer())));
    // Digits alone may be a number.
    let is_number = text.len() < 20 && !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number && item.encoding == Encoding::Percent { out.item(&text) } else { out.item(&value) }
}
