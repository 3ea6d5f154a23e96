//! Upper and lower case as Python changes it.

/// `str.capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| title_case(first) + &rest.as_str().to_lowercase())
}

/// `str.title`: a word begins after any character that is not a letter.
pub(super) fn title(text: &str) -> String {
    let mut titled = String::new();
    let mut inside = false;
    for c in text.chars() {
        if inside {
            titled.extend(c.to_lowercase())
        } else {
            titled.push_str(&title_case(c))
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    titled
}

/// `str.swapcase`.
pub(super) fn swap_case(text: &str) -> String {
    let mut swapped = String::new();
    for c in text.chars() {
        if c.is_uppercase() { swapped.extend(c.to_lowercase()) } else { swapped.extend(c.to_uppercase()) }
    }
    swapped
}

/// `str.casefold`, but for a few ligatures: lower case, and a sharp s is two.
pub(super) fn fold(text: &str) -> String {
    text.to_lowercase().replace('ß', "ss").replace('ς', "σ")
}

/// The first letter of a word: if its upper case has several letters, only the first stays upper case.
fn title_case(c: char) -> String {
    match c {
        'Ǆ' | 'ǆ' => return "ǅ".into(),
        'Ǉ' | 'ǉ' => return "ǈ".into(),
        'Ǌ' | 'ǌ' => return "ǋ".into(),
        'Ǳ' | 'ǳ' => return "ǲ".into(),
        _ => {}
    }
    let mut upper = c.to_uppercase();
    upper.next().into_iter().chain(upper.flat_map(char::to_lowercase)).collect()
}
