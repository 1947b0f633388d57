//! Small pictures, as SVG, for light pages and dark ones.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const LABELS: f64 = 250.0;
const RIGHT: f64 = 100.0;
const ROW: f64 = 26.0;
const BAR: f64 = 18.0;
const TOP: f64 = 44.0;
const HEADING: f64 = 30.0;
/// An own background, since a page need not be as light or dark as the reader's system says. Values keep the line of the
/// limit from crossing them.
const STYLE: &str = "<style>\
    .page{fill:#ffffff;stroke:#d0d7de}.text{fill:#1f2328}.quiet{fill:#59636e}\
    .ours{fill:#0969da}.other{fill:#9aa4af}.spread{stroke:#1f2328}.limit{stroke:#cf222e}\
    .value{stroke:#ffffff;stroke-width:5;paint-order:stroke}\
    @media (prefers-color-scheme:dark){\
    .page{fill:#0d1117;stroke:#3d444d}.text{fill:#e6edf3}.quiet{fill:#9198a1}\
    .ours{fill:#4493f8}.other{fill:#656c76}.spread{stroke:#e6edf3}.limit{stroke:#ff7b72}\
    .value{stroke:#0d1117}}\
    </style>";

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

/// Bars below a heading.
pub(crate) struct Group {
    /// What they have in common; nothing for none.
    pub(crate) heading: String,
    /// The bars.
    pub(crate) bars: Vec<Bar>,
}

/// A line across all bars.
pub(crate) struct Limit<'a> {
    /// Where.
    pub(crate) value: f64,
    /// What it means.
    pub(crate) label: &'a str,
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Horizontal bars on one scale from zero, with their quartiles.
pub(crate) fn bars(title: &str, unit: &str, bars: Vec<Bar>) -> String {
    groups(title, unit, None, &[Group { heading: String::new(), bars }])
}

/// Groups of horizontal bars on one scale from zero, with their quartiles.
pub(crate) fn groups(title: &str, unit: &str, limit: Option<&Limit<'_>>, groups: &[Group]) -> String {
    let all = || groups.iter().flat_map(|g| &g.bars);
    let most = all().map(|b| b.value.max(b.spread.1)).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABELS - RIGHT) / limit.map_or(most, |l| most.max(l.value));
    let headings = groups.iter().filter(|g| !g.heading.is_empty()).count() as f64;
    let top = TOP + if limit.is_some() { 18.0 } else { 0.0 };
    let height = top + ROW * all().count() as f64 + HEADING * headings + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"Helvetica,Arial,sans-serif\" font-size=\"13\">\n{STYLE}\n\
         <rect class=\"page\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n\
         <text class=\"text\" x=\"14\" y=\"26\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        WIDTH - 1.0,
        height - 1.0,
        escaped(title)
    );
    if let Some(limit) = limit {
        let x = LABELS + limit.value * scale;
        let _ = writeln!(
            svg,
            "<text class=\"quiet\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
             <line class=\"limit\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke-dasharray=\"4 3\"/>",
            top - 10.0,
            escaped(limit.label),
            top - 4.0,
            height - 8.0
        );
    }
    let mut y = top;
    for group in groups {
        if !group.heading.is_empty() {
            let _ = writeln!(
                svg,
                "<text class=\"text\" x=\"14\" y=\"{:.1}\" font-weight=\"bold\">{}</text>",
                y + 20.0,
                escaped(&group.heading)
            );
            y += HEADING;
        }
        for bar in &group.bars {
            draw(&mut svg, bar, unit, y, scale);
            y += ROW;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, bar: &Bar, unit: &str, y: f64, scale: f64) {
    let middle = y + BAR / 2.0;
    let class = if bar.ours { "ours" } else { "other" };
    let weight = if bar.ours { " font-weight=\"bold\"" } else { "" };
    let (low, high) = (LABELS + bar.spread.0 * scale, LABELS + bar.spread.1 * scale);
    let digits = if bar.value < 10.0 { 2 } else { 1 };
    let _ = writeln!(
        svg,
        "<text class=\"text\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\"{weight}>{}</text>\n\
         <rect class=\"{class}\" x=\"{LABELS}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\"/>\n\
         <line class=\"spread\" x1=\"{low:.1}\" y1=\"{middle:.1}\" x2=\"{high:.1}\" y2=\"{middle:.1}\" stroke-width=\"1.5\"/>\n\
         <text class=\"text value\" x=\"{:.1}\" y=\"{:.1}\"{weight}>{:.digits$} {}</text>",
        LABELS - 10.0,
        middle + 4.5,
        escaped(&bar.label),
        bar.value * scale,
        LABELS + bar.value.max(bar.spread.1) * scale + 8.0,
        middle + 4.5,
        bar.value,
        escaped(unit),
    );
}
