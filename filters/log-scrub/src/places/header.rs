//! Header fields, each as what its name says it is.

use super::encoding::SEGMENT;
use super::{Scan, Why, cookie, json, set_cookie, text, url};
use crate::{Findings, Rule, Rules};
use alloc::borrow::Cow;
use kit::alloc;
use kit::prelude::*;

/// A header whose name is known before its values come.
#[derive(Debug)]
pub struct Header {
    name: Box<str>,
    form: Form,
    /// What covers it whole, whatever its value is.
    rule: Option<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Cookie,
    SetCookie,
    Url,
    /// Percent-encoded text: gRPC's `grpc-message`.
    Percent,
    /// gRPC metadata in base64.
    Binary,
    /// Anything: text, JSON, a URL.
    Value,
}

impl Header {
    /// A header of this name, in lower case.
    pub fn new(rules: &Rules, name: &str) -> Self {
        let form = match name {
            "cookie" => Form::Cookie,
            "set-cookie" => Form::SetCookie,
            "referer"
            | "location"
            | "content-location"
            | "x-forwarded-uri"
            | "x-original-url"
            | "x-rewrite-url"
            | "x-envoy-original-path" => Form::Url,
            "grpc-message" => Form::Percent,
            _ if name.ends_with("-bin") => Form::Binary,
            _ => Form::Value,
        };
        // Of cookies the names stay, and of a URL all that says nothing.
        let rule = if matches!(form, Form::Cookie | Form::SetCookie) { None } else { rules.field(name) };
        Self { name: name.into(), form, rule }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The clean text of a value.
    ///
    /// # Errors
    /// [`Why::Encoding`]: it is no text in UTF-8.
    pub fn clean<'t>(&self, rules: &Rules, value: &'t [u8], findings: &mut Findings) -> Result<Cow<'t, [u8]>, Why> {
        if let Some(rule) = self.rule {
            let cover = rules.cover(rule, value, findings);
            // What is left of it, such as its scheme, is text.
            return if core::str::from_utf8(&cover).is_ok() { Ok(Cow::Owned(cover)) } else { Err(Why::Encoding) };
        }
        let scan = Scan::new(rules);
        if !matches!(self.form, Form::Cookie | Form::SetCookie | Form::Binary) && scan.is_plain(value) {
            return Ok(Cow::Borrowed(value));
        }
        if self.form == Form::Binary || core::str::from_utf8(value).is_err() {
            return Err(Why::Encoding);
        }
        Ok(match self.form {
            Form::Cookie => cookie(rules, value, findings),
            Form::SetCookie => set_cookie(rules, value, findings),
            Form::Url => url(rules, value, findings),
            Form::Percent => SEGMENT.clean(scan, &self.name, value, findings).map_or(Cow::Borrowed(value), Cow::Owned),
            Form::Binary | Form::Value => {
                // A text in which there may be fields and URLs, or else one of these as a whole.
                if value.contains(&b' ') && !json::looks_so(value) {
                    text(rules, &self.name, value, findings)
                } else {
                    scan.value(&self.name, value, findings).map_or(Cow::Borrowed(value), Cow::Owned)
                }
            }
        })
    }
}
