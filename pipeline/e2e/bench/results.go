package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"
	"time"
)

// results holds the results of a run.
type results struct {
	machine, broker, day string
	events, size, rounds int
	measured             map[string][]measured    // by variant, one per round
	latency              map[string]time.Duration // p99, by variant
	pace                 float64                  // events/s of the latency measurement
	chain                chain
	decimals             chain // the same with decimals
}

// A spread is a value of several rounds.
type spread struct {
	mean     float64
	min, max float64
	rounds   int // number of rounds with a value; 0 means that there is no spread
}

// newSpread returns the spread of values. It leaves out values of 0, which are unknown.
func newSpread(values []float64) (s spread) {
	for _, v := range values {
		if v == 0 {
			continue
		}
		if s.rounds++; s.rounds == 1 {
			s.min, s.max = v, v
		}
		s.min, s.max = min(s.min, v), max(s.max, v)
		s.mean += v
	}
	if s.rounds > 0 {
		s.mean /= float64(s.rounds)
	}
	return s
}

// bounds returns the minimum and the maximum with a number of digits, or "" if there is
// only one value.
func (s spread) bounds(digits int) string {
	if s.rounds < 2 {
		return ""
	}
	return fmt.Sprintf("%.*f to %.*f", digits, s.min, digits, s.max)
}

// cell returns the mean, followed by the bounds in parentheses if there are any.
func (s spread) cell(digits int) string {
	text := fmt.Sprintf("%.*f", digits, s.mean)
	if bounds := s.bounds(digits); bounds != "" {
		text += " (" + bounds + ")"
	}
	return text
}

func micros(m measured) float64 { return m.micros }
func rate(m measured) float64   { return m.rate }
func memory(m measured) float64 { return m.memory }

// spread returns the spread of a value of a variant over its rounds.
func (r *results) spread(key string, f func(measured) float64) spread {
	var values []float64
	for _, m := range r.measured[key] {
		values = append(values, f(m))
	}
	return newSpread(values)
}

// quotient returns the mean of a value of one variant divided by that of another, and the
// bounds of the quotients of single rounds. It uses only rounds with both values, so the
// quotient of the means lies within the bounds.
func (r *results) quotient(over, under string, f func(measured) float64) spread {
	var a, b, quotients []float64
	for i := range min(len(r.measured[over]), len(r.measured[under])) {
		x, y := f(r.measured[over][i]), f(r.measured[under][i])
		if x > 0 && y > 0 {
			a, b, quotients = append(a, x), append(b, y), append(quotients, x/y)
		}
	}
	s := newSpread(quotients)
	if s.rounds > 0 {
		s.mean = newSpread(a).mean / newSpread(b).mean
	}
	return s
}

// A ratio is a number with its goal.
type ratio struct {
	name  string
	value spread
	goal  string
	met   bool
}

// ratios returns the numbers whose variants and steps were run.
func (r *results) ratios() (out []ratio) {
	of := func(name, over, under string, f func(measured) float64, goal string, met func(float64) bool) {
		if v := r.quotient(over, under, f); v.rounds > 0 {
			out = append(out, ratio{name, v, goal, met(v.mean)})
		}
	}
	single := func(name string, v float64, goal string, met bool) {
		out = append(out, ratio{name, spread{mean: v, min: v, max: v, rounds: 1}, goal, met})
	}
	most := func(v float64) func(float64) bool { return func(x float64) bool { return x <= v } }
	least := func(v float64) func(float64) bool { return func(x float64) bool { return x >= v } }
	none := func(float64) bool { return true }
	of("ratio_b_over_a", "b", "a", micros, "CPU: at most 1.2, then below 1.0", most(1.2))
	of("ratio_b_over_a0", "b", "a0", micros, "CPU: for information", none)
	of("ratio_lookup_over_a", "b2", "a", micros, "CPU: for information", none)
	of("ratio_c_over_b", "c", "b", micros, "CPU: at least 3", least(3))
	of("ratio_eos_over_alo", "b", "db", rate, "throughput: at least 0.9", least(0.9))
	of("ratio_a_eos_over_alo", "a", "da", rate, "throughput: for information", none)
	ms := func(key string) float64 { return float64(r.latency[key].Microseconds()) / 1000 }
	if goal := float64((commitInterval + 50*time.Millisecond).Milliseconds()); r.latency["b"] > 0 {
		single("p99_ms", ms("b"), fmt.Sprintf("at %.0f events/s, half of the full load: at most %.0f", r.pace, goal), ms("b") <= goal)
		single("p99_ms_of_a", ms("a"), "at the same rate: for information", true)
	}
	if r.chain.nanos > 0 {
		single("chain_ns_per_event", r.chain.nanos, "for information", true)
		single("allocs_per_event", r.chain.allocs, "of the chain: 0", r.chain.allocs == 0)
		single("chain_decimals_ns_per_event", r.decimals.nanos, "with a decimal and a nullable field: for information", true)
		single("allocs_per_event_decimals", r.decimals.allocs, "of that chain: 0", r.decimals.allocs == 0)
	}
	return out
}

// rows calls row for each measured variant, in the order of the table, with its cells.
func (r *results) rows(row func(v variant, rate, micros, memory string)) {
	for _, v := range variants {
		if len(r.measured[v.key]) > 0 {
			row(v, r.spread(v.key, rate).cell(0), r.spread(v.key, micros).cell(3), r.spread(v.key, memory).cell(0))
		}
	}
}

// conditions describes the conditions that all variants share.
func (r *results) conditions() string {
	rounds := "one round"
	if r.rounds > 1 {
		rounds = fmt.Sprintf("the mean of %d rounds, with the minimum and the maximum", r.rounds)
	}
	return fmt.Sprintf("%d events of %d bytes in %d partitions; each loop is a process with one session (one member of the group), GOMAXPROCS=%d and a commit every %v (a0: after every poll); %s",
		r.events, r.size, partitions, processors(), commitInterval, rounds)
}

// print writes the table, the bounds, the missed goals, and a line NAME=VALUE for each
// number.
func (r *results) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n%s\n%s\n\n", r.machine, r.broker, r.conditions())
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\tloop\tguarantee\tevents/s\tCPU us/event\tMiB")
	r.rows(func(v variant, rate, micros, memory string) {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", v.key, v.name, v.guarantee, rate, micros, memory)
	})
	_ = table.Flush() // as with Fprintf, errors of w are ignored
	fmt.Fprintln(w)
	for _, n := range r.ratios() {
		if bounds := n.value.bounds(3); bounds != "" {
			fmt.Fprintf(w, "%s: %s in single rounds\n", n.name, bounds)
		}
		if !n.met {
			fmt.Fprintf(w, "missed: %s (%s)\n", n.name, n.goal)
		}
	}
	for _, n := range r.ratios() {
		fmt.Fprintf(w, "%s=%.3f\n", n.name, n.value.mean)
	}
}

// markdown returns the results for docs/benchmarks.md.
func (r *results) markdown() string {
	var s strings.Builder
	fmt.Fprintf(&s, "Measured on %s: %s. Broker: %s. %s.\n\n", r.day, r.machine, r.broker, upper(r.conditions()))
	s.WriteString("| | loop | guarantee | events/s | CPU, us/event | memory, MiB |\n| --- | --- | --- | ---: | ---: | ---: |\n")
	r.rows(func(v variant, rate, micros, memory string) {
		fmt.Fprintf(&s, "| %s | %s | `%s` | %s | %s | %s |\n", v.key, v.name, v.guarantee, rate, micros, memory)
	})
	s.WriteString("\n| number | value | single rounds | goal | |\n| --- | ---: | ---: | --- | --- |\n")
	for _, n := range r.ratios() {
		met := "met"
		switch {
		case !n.met:
			met = "missed"
		case strings.Contains(n.goal, "information"):
			met = ""
		}
		fmt.Fprintf(&s, "| `%s` | %.3f | %s | %s | %s |\n", n.name, n.value.mean, n.value.bounds(3), n.goal, met)
	}
	return s.String()
}

func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// writeSection replaces the text between the markers of a section of a file. It appends a
// missing section.
func writeSection(file, section, text string) error {
	begin, end := "<!-- "+section+": written by make bench -->", "<!-- "+section+": end -->"
	have, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	page := string(have)
	from, to := strings.Index(page, begin), strings.Index(page, end)
	switch {
	case from >= 0 && to > from:
		page = page[:from] + begin + "\n" + text + page[to:]
	case from >= 0 || to >= 0:
		return fmt.Errorf("%s has only one of the markers %s and %s, or has them in the wrong order", file, begin, end)
	default:
		page += "\n" + begin + "\n" + text + end + "\n"
	}
	return os.WriteFile(file, []byte(page), 0o644)
}
