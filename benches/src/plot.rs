//! Latency by percentile as an SVG: both axes logarithmic, the x axis in nines.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 250.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Percentiles from p0 to p99.99: what is beyond belongs to the machine.
const NINES: f64 = 4.0;
const COLOURS: [&str; 10] = [
    "#d62728", "#ff9896", "#1f77b4", "#7f7f7f", "#aec7e8", "#2ca02c", "#98df8a", "#9467bd", "#8c564b", "#e377c2",
];

/// Draws a line for each histogram of nanoseconds.
pub(crate) fn by_percentile(title: &str, lines: &[(&str, &Histogram<u64>)]) -> String {
    let least = lines.iter().map(|(_, h)| h.min()).min().unwrap_or(1).max(1) as f64;
    let most = lines
        .iter()
        .map(|(_, h)| h.value_at_quantile(1.0 - 10f64.powf(-NINES)))
        .max();
    let (low, high) = (least.log10().floor(), (most.unwrap_or(10) as f64).log10().ceil());
    let x = |nines: f64| LEFT + nines / NINES * (WIDTH - LEFT - RIGHT);
    let y = |nanos: f64| TOP + (high - nanos.max(1.0).log10()) / (high - low).max(1.0) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">{title}</text>\n"
    );
    let (left, right, top, bottom) = (x(0.0), x(NINES), TOP, HEIGHT - BOTTOM);
    for (label, share) in [
        ("0", 0.0),
        ("50", 0.5),
        ("90", 0.9),
        ("99", 0.99),
        ("99.9", 0.999),
        ("99.99", 0.9999),
    ] {
        let at = x(-(1.0f64 - share).log10());
        let _ = writeln!(
            svg,
            "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{}\" \
             text-anchor=\"middle\">{label}</text>",
            bottom + 18.0
        );
    }
    for decade in low as i32..=high as i32 {
        for step in [1.0, 2.0, 5.0] {
            let nanos = step * 10f64.powi(decade);
            if nanos.log10() > high {
                continue;
            }
            let at = y(nanos);
            let _ = writeln!(
                svg,
                "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                left - 6.0,
                at + 4.0,
                nanos / 1e3
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">percentile</text>\
         <text x=\"16\" y=\"{:.1}\" transform=\"rotate(-90 16 {:.1})\" text-anchor=\"middle\">microseconds</text>",
        f64::midpoint(left, right),
        HEIGHT - 12.0,
        f64::midpoint(top, bottom),
        f64::midpoint(top, bottom)
    );
    for (i, (name, histogram)) in lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let mut path = String::new();
        for step in 0..=200 {
            let nines = NINES * f64::from(step) / 200.0;
            let nanos = histogram.value_at_quantile(1.0 - 10f64.powf(-nines)) as f64;
            let command = if step == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", x(nines), y(nanos));
        }
        let legend = TOP + 10.0 + 20.0 * i as f64;
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"/>\
             <path d=\"M{:.1} {legend}h24\" stroke=\"{colour}\" stroke-width=\"3\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{name}</text>",
            right + 16.0,
            right + 46.0,
            legend + 4.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}
