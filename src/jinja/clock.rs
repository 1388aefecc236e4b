//! `strftime_now`: the local time, as C's `strftime` writes it.

/// A point in local time.
pub(super) struct Moment {
    pub year: i64,
    /// From 1.
    pub month: u32,
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
    pub microsecond: u32,
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Now, where this computer is.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn now() -> Moment {
    use chrono::{Datelike, Timelike};
    let now = chrono::Local::now();
    Moment {
        year: i64::from(now.year()),
        month: now.month(),
        day: now.day(),
        hour: now.hour(),
        minute: now.minute(),
        second: now.second(),
        microsecond: now.nanosecond() % 1_000_000_000 / 1000,
    }
}

/// Now, where the browser is.
#[cfg(target_arch = "wasm32")]
pub(super) fn now() -> Moment {
    let now = js_sys::Date::new_0();
    Moment {
        year: i64::from(now.get_full_year()),
        month: now.get_month() + 1,
        day: now.get_date(),
        hour: now.get_hours(),
        minute: now.get_minutes(),
        second: now.get_seconds(),
        microsecond: now.get_milliseconds() * 1000,
    }
}

impl Moment {
    /// The day of the year, from 0.
    fn day_of_year(&self) -> i64 {
        days_before(self.year, self.month) - days_before(self.year, 1) + i64::from(self.day) - 1
    }

    /// The day of the week, from Sunday, 0.
    fn weekday(&self) -> i64 {
        // The first day of 1970 was a Thursday.
        (days_before(self.year, self.month) + i64::from(self.day) - 1 + 4).rem_euclid(7)
    }

    /// The year and week of ISO 8601.
    fn iso_week(&self) -> (i64, i64) {
        let weekday = (self.weekday() + 6) % 7;
        let week = (self.day_of_year() - weekday + 10) / 7;
        let first = Self { month: 1, day: 1, ..*self };
        let weeks = |year: i64| {
            let first = Self { year, ..first }.weekday();
            if first == 4 || first == 3 && is_leap(year) { 53 } else { 52 }
        };
        match week {
            0 => (self.year - 1, weeks(self.year - 1)),
            _ if week > weeks(self.year) => (self.year + 1, 1),
            _ => (self.year, week),
        }
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from 1970 to the first of a month.
fn days_before(year: i64, month: u32) -> i64 {
    // Years begin in March, so that a leap day is their last.
    let month = i64::from(month);
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 - 719_468
}

/// Python's `strftime` of a time without a zone, in the language of programs.
pub(super) fn strftime(format: &str, now: &Moment) -> String {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        let mut rest = chars.clone();
        let mut kind = rest.next();
        let flag = kind.filter(|char| matches!(char, '-' | '_' | '0' | '^'));
        if flag.is_some() {
            kind = rest.next();
        }
        match kind.and_then(|kind| field(kind, flag, now)) {
            Some(text) => {
                out.push_str(&text);
                chars = rest;
            }
            None => out.push('%'),
        }
    }
    out
}

/// One field; none where C knows none.
fn field(kind: char, flag: Option<char>, now: &Moment) -> Option<String> {
    let number = |number: i64, width: usize, fill: char| match flag {
        Some('-') => number.to_string(),
        Some('_') => format!("{number:>width$}"),
        Some('0') => format!("{number:0>width$}"),
        _ if fill == '0' => format!("{number:0>width$}"),
        _ => format!("{number:>width$}"),
    };
    let text = |text: &str| if flag == Some('^') { text.to_uppercase() } else { text.to_owned() };
    let name = |names: &[&'static str], index: i64| names.get(index as usize).copied().unwrap_or_default();
    let (day, month) = (name(&DAYS, now.weekday()), name(&MONTHS, i64::from(now.month) - 1));
    let short = |name: &'static str| name.get(..3).unwrap_or(name);
    let hour = i64::from(now.hour);
    let half = if hour % 12 == 0 { 12 } else { hour % 12 };
    Some(match kind {
        'a' => text(short(day)),
        'A' => text(day),
        'b' | 'h' => text(short(month)),
        'B' => text(month),
        'c' => strftime("%a %b %e %H:%M:%S %Y", now),
        'C' => number(now.year / 100, 2, '0'),
        'd' => number(i64::from(now.day), 2, '0'),
        'D' | 'x' => strftime("%m/%d/%y", now),
        'e' => number(i64::from(now.day), 2, ' '),
        'f' => format!("{:06}", now.microsecond),
        'F' => strftime("%Y-%m-%d", now),
        'g' => number(now.iso_week().0 % 100, 2, '0'),
        'G' => number(now.iso_week().0, 4, '0'),
        'H' => number(hour, 2, '0'),
        'I' => number(half, 2, '0'),
        'j' => number(now.day_of_year() + 1, 3, '0'),
        'k' => number(hour, 2, ' '),
        'l' => number(half, 2, ' '),
        'm' => number(i64::from(now.month), 2, '0'),
        'M' => number(i64::from(now.minute), 2, '0'),
        'n' => "\n".to_owned(),
        'p' => text(if hour < 12 { "AM" } else { "PM" }),
        'P' => if hour < 12 { "am" } else { "pm" }.to_owned(),
        'r' => strftime("%I:%M:%S %p", now),
        'R' => strftime("%H:%M", now),
        'S' => number(i64::from(now.second), 2, '0'),
        't' => "\t".to_owned(),
        'T' | 'X' => strftime("%H:%M:%S", now),
        'u' => number((now.weekday() + 6) % 7 + 1, 1, '0'),
        'U' => number((now.day_of_year() + 7 - now.weekday()) / 7, 2, '0'),
        'V' => number(now.iso_week().1, 2, '0'),
        'w' => number(now.weekday(), 1, '0'),
        'W' => number((now.day_of_year() + 7 - (now.weekday() + 6) % 7) / 7, 2, '0'),
        'y' => number(now.year % 100, 2, '0'),
        'Y' => number(now.year, 1, '0'),
        // Python's local time has no zone.
        'z' | 'Z' => String::new(),
        '%' => "%".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Moment, strftime};

    const ALL: &str = "%a|%A|%b|%B|%c|%C|%d|%D|%e|%f|%F|%g|%G|%H|%I|%j|%k|%l|%m|%M|%p|%P|%r|%R|%S|%T|%u|%U|%V|%w|%W|%x|%X|%y\
        |%Y|%Z%z|%%|%-d|%-m|%_d|%^a|%-I|%h";

    /// Python 3.11's `datetime(…).strftime(ALL)` in the C locale.
    #[test]
    fn times_are_written_as_python_writes_them() {
        let cases = [
            (
                [2024, 2, 29, 0, 5, 9, 1234],
                "Thu|Thursday|Feb|February|Thu Feb 29 00:05:09 2024|20|29|02/29/24|29|001234|2024-02-29|24|2024|00|12|060\
                 | 0|12|02|05|AM|am|12:05:09 AM|00:05|09|00:05:09|4|08|09|4|09|02/29/24|00:05:09|24|2024||%|29|2|29|THU|12\
                 |Feb",
            ),
            (
                [2021, 1, 3, 12, 30, 59, 999_999],
                "Sun|Sunday|Jan|January|Sun Jan  3 12:30:59 2021|20|03|01/03/21| 3|999999|2021-01-03|20|2020|12|12|003\
                 |12|12|01|30|PM|pm|12:30:59 PM|12:30|59|12:30:59|7|01|53|0|00|01/03/21|12:30:59|21|2021||%|3|1| 3|SUN|12\
                 |Jan",
            ),
            (
                [2020, 12, 31, 23, 59, 59, 7],
                "Thu|Thursday|Dec|December|Thu Dec 31 23:59:59 2020|20|31|12/31/20|31|000007|2020-12-31|20|2020|23|11|366\
                 |23|11|12|59|PM|pm|11:59:59 PM|23:59|59|23:59:59|4|52|53|4|52|12/31/20|23:59:59|20|2020||%|31|12|31|THU|11\
                 |Dec",
            ),
            (
                [1999, 8, 1, 9, 9, 9, 0],
                "Sun|Sunday|Aug|August|Sun Aug  1 09:09:09 1999|19|01|08/01/99| 1|000000|1999-08-01|99|1999|09|09|213\
                 | 9| 9|08|09|AM|am|09:09:09 AM|09:09|09|09:09:09|7|31|30|0|30|08/01/99|09:09:09|99|1999||%|1|8| 1|SUN|9\
                 |Aug",
            ),
        ];
        for ([year, month, day, hour, minute, second, microsecond], expected) in cases {
            let moment = Moment { year: i64::from(year), month, day, hour, minute, second, microsecond };
            assert_eq!(strftime(ALL, &moment), expected);
        }
        let moment = Moment { year: 2026, month: 1, day: 2, hour: 3, minute: 4, second: 5, microsecond: 6 };
        assert_eq!(strftime("%Q % %", &moment), "%Q % %");
    }
}
