//! A stand-in for Pushover over real HTTP, which holds callers to the rules of its documented API
//! and shows what a phone would have shown.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

/// The token of the application.
pub(crate) const TOKEN: &str = "azGDORePK8gMaC0QOYAMyEEuzJnyUi";
/// The user whose phone it is.
pub(crate) const USER: &str = "uQiRzpo4DXghDmr9QzzgQu27cmVRsG";

/// A message as the phone shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Push {
    pub(crate) title: String,
    pub(crate) message: String,
    pub(crate) priority: i32,
    pub(crate) sound: String,
    pub(crate) url: String,
}

/// How the service treats the next messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// As documented.
    Well,
    /// Answers 500 and takes nothing.
    Failing,
    /// Answers 429: the messages of the month are used up.
    UsedUp,
    /// Answers 400, as it does to a wrong token.
    Refusing,
    /// Takes the message and hangs up without an answer.
    TakesAndHangsUp,
    /// Hangs up without an answer and takes nothing.
    HangsUp,
}

#[derive(Debug)]
struct State {
    pushes: Vec<Push>,
    /// Calls of `messages.json`, with when they came.
    calls: Vec<Instant>,
    moods: Vec<Mood>,
    remaining: i64,
    /// Breaches of the documented rules.
    breaches: Vec<String>,
    open: usize,
    failed_at: Option<Instant>,
    receipts: HashMap<String, Receipt>,
}

#[derive(Clone, Debug, Default)]
struct Receipt {
    cancelled: bool,
    acknowledged_by: String,
}

/// The service with the phone behind it. Ends with its owner.
#[derive(Debug)]
pub(crate) struct Phone {
    state: Arc<Mutex<State>>,
    address: std::net::SocketAddr,
}

impl Phone {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            pushes: Vec::new(),
            calls: Vec::new(),
            moods: Vec::new(),
            remaining: 7_496,
            breaches: Vec::new(),
            open: 0,
            failed_at: None,
            receipts: HashMap::new(),
        }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(&state, stream));
            }
        });
        Self { state, address }
    }

    /// The address to use in the place of Pushover's.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How the next calls of `messages.json` are treated, one after the other; well afterwards.
    pub(crate) fn moods(&self, moods: &[Mood]) {
        let mut state = self.state.lock().unwrap();
        state.moods = moods.iter().rev().copied().collect();
    }

    /// Everything that the phone has shown, in order.
    pub(crate) fn shown(&self) -> Vec<Push> {
        self.state.lock().unwrap().pushes.clone()
    }

    /// How often a message was sent, taken or not.
    pub(crate) fn calls(&self) -> usize {
        self.state.lock().unwrap().calls.len()
    }

    /// Urgent messages whose repetition was ended by the sender.
    pub(crate) fn cancelled(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.receipts.values().filter(|one| one.cancelled).count()
    }

    /// A person acknowledges every urgent message on a device of this name.
    pub(crate) fn acknowledge(&self, device: &str) {
        let mut state = self.state.lock().unwrap();
        for receipt in state.receipts.values_mut() {
            device.clone_into(&mut receipt.acknowledged_by);
        }
    }

    /// Panics when a caller broke a documented rule.
    #[track_caller]
    pub(crate) fn assert_rules_kept(&self) {
        let state = self.state.lock().unwrap();
        assert!(state.breaches.is_empty(), "{:#?}", state.breaches);
    }
}

fn serve(state: &Mutex<State>, stream: TcpStream) {
    {
        let mut state = state.lock().unwrap();
        state.open += 1;
        if state.open > 2 {
            state.breaches.push("more than two connections".to_owned());
        }
    }
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some((method, path, body)) = request(&mut reader) {
        let Some(answer) = answer(state, &method, &path, &body) else {
            break;
        };
        if writer.write_all(answer.as_bytes()).is_err() {
            break;
        }
    }
    let _ = writer.shutdown(std::net::Shutdown::Both);
    state.lock().unwrap().open -= 1;
}

fn request(reader: &mut impl BufRead) -> Option<(String, String, String)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim();
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((method, path, String::from_utf8(body).ok()?))
}

fn answer(state: &Mutex<State>, method: &str, path: &str, body: &str) -> Option<String> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let form = decoded(if method == "GET" { query } else { body });
    let known = form.get("token").is_some_and(|token| token == TOKEN);
    if !known {
        return Some(refusal(
            400,
            r#"{"token":"invalid","errors":["application token is invalid, see https://pushover.net/api"],"status":0}"#,
        ));
    }
    match (method, path) {
        ("POST", "/1/messages.json") => message(state, &form),
        ("POST", "/1/users/validate.json") => Some(match form.get("user").map(String::as_str) {
            Some(USER) => http(200, "", r#"{"status":1,"devices":["phone"]}"#),
            _ => refusal(
                400,
                r#"{"user":"invalid","errors":["user key is invalid"],"status":0}"#,
            ),
        }),
        ("GET", "/1/apps/limits.json") => {
            let remaining = state.lock().unwrap().remaining;
            Some(http(
                200,
                "",
                &format!(
                    r#"{{"limit":10000,"remaining":{remaining},"reset":1793653600,"status":1}}"#
                ),
            ))
        }
        ("GET", path) if path.starts_with("/1/receipts/") => {
            let name = path
                .trim_start_matches("/1/receipts/")
                .trim_end_matches(".json");
            let receipts = state.lock().unwrap().receipts.clone();
            let by = &receipts.get(name)?.acknowledged_by;
            let (acknowledged, at) = match by.is_empty() {
                true => (0, 0),
                false => (1, 1_793_000_000),
            };
            Some(http(
                200,
                "",
                &format!(
                    r#"{{"status":1,"acknowledged":{acknowledged},"acknowledged_at":{at},"acknowledged_by_device":"{by}","expired":0}}"#
                ),
            ))
        }
        ("POST", path) if path.ends_with("/cancel.json") => {
            let name = path
                .trim_start_matches("/1/receipts/")
                .trim_end_matches("/cancel.json");
            let mut state = state.lock().unwrap();
            state.receipts.get_mut(name)?.cancelled = true;
            Some(http(200, "", r#"{"status":1}"#))
        }
        _ => Some(refusal(404, r#"{"status":0,"errors":["not found"]}"#)),
    }
}

fn message(state: &Mutex<State>, form: &HashMap<String, String>) -> Option<String> {
    let mut state = state.lock().unwrap();
    let now = Instant::now();
    if state
        .failed_at
        .take()
        .is_some_and(|at| now - at < Duration::from_secs(5))
    {
        state
            .breaches
            .push("repeated within five seconds of a failure".to_owned());
    }
    state.calls.push(now);
    let mood = state.moods.pop().unwrap_or(Mood::Well);
    match mood {
        Mood::Failing => {
            state.failed_at = Some(now);
            return Some(http(500, "", r#"{"status":0,"errors":["internal error"]}"#));
        }
        Mood::UsedUp => {
            return Some(refusal(
                429,
                r#"{"status":0,"errors":["application has exceeded its limit"]}"#,
            ));
        }
        Mood::Refusing => {
            return Some(refusal(
                400,
                r#"{"status":0,"errors":["user identifier is not valid"]}"#,
            ));
        }
        Mood::HangsUp => return None,
        Mood::Well | Mood::TakesAndHangsUp => {}
    }
    let answer = taken(&mut state, form);
    if mood == Mood::TakesAndHangsUp {
        None
    } else {
        answer
    }
}

/// What the service does with a message: it checks it, counts it, and has the phone show it.
fn taken(state: &mut State, form: &HashMap<String, String>) -> Option<String> {
    let field = |name: &str| form.get(name).cloned().unwrap_or_default();
    for (name, most) in [
        ("message", 1_024),
        ("title", 250),
        ("url", 512),
        ("url_title", 100),
    ] {
        let length = field(name).chars().count();
        if length > most {
            state
                .breaches
                .push(format!("{name} has {length} characters"));
            return Some(refusal(400, r#"{"status":0,"errors":["too long"]}"#));
        }
    }
    if field("user") != USER || field("message").is_empty() {
        state.breaches.push("no user or message".to_owned());
        return Some(refusal(
            400,
            r#"{"status":0,"errors":["user or message is blank"]}"#,
        ));
    }
    let number = |name: &str| field(name).parse::<i64>().unwrap_or(0);
    let priority = number("priority") as i32;
    let mut receipt = String::new();
    if priority == 2 {
        if number("retry") < 30 || !(1..=10_800).contains(&number("expire")) {
            state
                .breaches
                .push("an emergency without retry or expire".to_owned());
            return Some(refusal(400, r#"{"status":0,"errors":["retry or expire"]}"#));
        }
        let name = format!("r{}", state.pushes.len());
        receipt = format!(r#","receipt":"{name}""#);
        state.receipts.insert(name, Receipt::default());
    }
    state.remaining -= 1;
    state.pushes.push(Push {
        title: field("title"),
        message: field("message"),
        priority,
        sound: field("sound"),
        url: field("url"),
    });
    let headers = format!(
        "X-Limit-App-Limit: 10000\r\nX-Limit-App-Remaining: {}\r\nX-Limit-App-Reset: 1793653600\r\n",
        state.remaining
    );
    Some(http(
        200,
        &headers,
        &format!(r#"{{"status":1,"request":"x"{receipt}}}"#),
    ))
}

fn decoded(text: &str) -> HashMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (percent(name), percent(value)))
        .collect()
}

fn percent(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = std::str::from_utf8(&after[..2]).unwrap();
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                rest = &after[2..];
                continue;
            }
            byte => bytes.push(*byte),
        }
        rest = after;
    }
    String::from_utf8(bytes).unwrap()
}

fn refusal(code: u16, body: &str) -> String {
    http(code, "", body)
}

fn http(code: u16, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}
