//! Text that came from elsewhere, made fit for a message, a log line or a terminal.

use std::fmt::Write as _;

/// Drops what a terminal or a log reader could take for a command, and cuts after `limit` characters.
///
/// Control characters (C0, DEL, C1), line and paragraph separators, and the marks that turn or hide text (Unicode
/// TR36, "bidirectional text spoofing") each become `?`.
pub fn sanitize(text: &str, limit: usize) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c,
                '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{061c}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    let mut clean: String = text
        .chars()
        .take(limit)
        .map(|c| if hidden(c) { '?' } else { c })
        .collect();
    if text.chars().nth(limit).is_some() {
        clean.push_str("...");
    }
    clean
}

/// [`sanitize`]s a text of several lines, each by itself.
pub fn printable(text: &str, limit: usize) -> String {
    let lines: Vec<String> = text.lines().map(|line| sanitize(line, limit)).collect();
    lines.join("\n")
}

/// [`sanitize`]d text between double quotes, for naming a bad input in an error.
pub fn quoted(text: &str, limit: usize) -> String {
    format!("\"{}\"", sanitize(text, limit))
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_commands_and_turned_text_are_replaced() {
        assert_eq!(sanitize("a\x1b]0;x\x07b\u{202e}c\u{9b}d\n", 40), "a?]0;x?b?c?d?");
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(printable("a\x1bb\n\n  c\u{202e}\n", 40), "a?b\n\n  c?");
    }

    #[test]
    fn long_text_is_cut_on_a_character_boundary() {
        assert_eq!(sanitize(&"ä".repeat(10), 3), "äää...");
        assert_eq!(sanitize("äää", 3), "äää");
    }
}
