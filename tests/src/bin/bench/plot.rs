//! Small pictures, as SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const LABELS: f64 = 240.0;
const RIGHT: f64 = 90.0;
const ROW: f64 = 30.0;
const TOP: f64 = 46.0;
/// The first is Fairlead's.
const COLOURS: [&str; 2] = ["#1f6feb", "#8c959f"];

/// A bar.
pub(crate) struct Bar {
    /// What it is of.
    pub(crate) label: String,
    /// Its length.
    pub(crate) value: f64,
    /// Quartiles.
    pub(crate) spread: (f64, f64),
    /// Whether it is Fairlead's.
    pub(crate) ours: bool,
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Horizontal bars on one scale from zero, with their quartiles.
pub(crate) fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let height = TOP + ROW * bars.len() as f64 + 12.0;
    let most = bars.iter().map(|b| b.value.max(b.spread.1)).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABELS - RIGHT) / most;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    );
    for (i, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * i as f64;
        let middle = y + ROW / 2.0 - 3.0;
        let colour = COLOURS[usize::from(!bar.ours)];
        let (low, high) = (LABELS + bar.spread.0 * scale, LABELS + bar.spread.1 * scale);
        let digits = if bar.value < 10.0 { 2 } else { 1 };
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\n\
             <line x1=\"{low:.1}\" y1=\"{middle:.1}\" x2=\"{high:.1}\" y2=\"{middle:.1}\" stroke=\"black\" stroke-width=\"1.5\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{:.digits$} {}</text>",
            LABELS - 10.0,
            middle + 4.5,
            escaped(&bar.label),
            bar.value * scale,
            ROW - 8.0,
            LABELS + bar.value.max(bar.spread.1) * scale + 8.0,
            middle + 4.5,
            bar.value,
            escaped(unit),
        );
    }
    svg.push_str("</svg>\n");
    svg
}
