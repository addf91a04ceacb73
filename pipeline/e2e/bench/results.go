package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
)

// results holds the results of a run.
type results struct {
	machine, broker, day string
	events, size, rounds int
	measured             map[string]measured      // by variant
	latency              map[string]time.Duration // p99, by variant
	pace                 float64                  // events/s of the latency measurement
	chain                chain
}

// add keeps the better of two rounds.
func (r *results) add(key string, m measured) {
	was, ok := r.measured[key]
	if ok {
		m = measured{rate: max(was.rate, m.rate), micros: min(was.micros, m.micros), memory: max(was.memory, m.memory)}
	}
	r.measured[key] = m
}

// A ratio is a number with its goal.
type ratio struct {
	name  string
	value float64
	goal  string
	met   bool
}

// ratios returns the numbers whose variants and steps were run.
func (r *results) ratios() (out []ratio) {
	of := func(name, over, under string, f func(measured) float64, goal string, met func(float64) bool) {
		a, okA := r.measured[over]
		b, okB := r.measured[under]
		if okA && okB && f(b) > 0 {
			v := f(a) / f(b)
			out = append(out, ratio{name, v, goal, met(v)})
		}
	}
	cpu := func(m measured) float64 { return m.micros }
	rate := func(m measured) float64 { return m.rate }
	most := func(v float64) func(float64) bool { return func(x float64) bool { return x <= v } }
	least := func(v float64) func(float64) bool { return func(x float64) bool { return x >= v } }
	none := func(float64) bool { return true }
	of("ratio_b_over_a", "b", "a", cpu, "CPU: at most 1.2, then below 1.0", most(1.2))
	of("ratio_b_over_a0", "b", "a0", cpu, "CPU: for information", none)
	of("ratio_lookup_over_a", "b2", "a", cpu, "CPU: for information", none)
	of("ratio_c_over_b", "c", "b", cpu, "CPU: at least 3", least(3))
	of("ratio_eos_over_alo", "b", "db", rate, "throughput: at least 0.9", least(0.9))
	of("ratio_a_eos_over_alo", "a", "da", rate, "throughput: for information", none)
	ms := func(key string) float64 { return float64(r.latency[key].Microseconds()) / 1000 }
	if goal := float64((commitInterval + 50*time.Millisecond).Milliseconds()); r.latency["b"] > 0 {
		out = append(out, ratio{"p99_ms", ms("b"), fmt.Sprintf("at %.0f events/s, half of the full load: at most %.0f", r.pace, goal), ms("b") <= goal})
		out = append(out, ratio{"p99_ms_of_a", ms("a"), "at the same rate: for information", true})
	}
	if r.chain.nanos > 0 {
		out = append(out, ratio{"chain_ns_per_event", r.chain.nanos, "for information", true})
		out = append(out, ratio{"allocs_per_event", r.chain.allocs, "of the chain: 0", r.chain.allocs == 0})
	}
	return out
}

// rows calls row for each measured variant, in the order of the table.
func (r *results) rows(row func(v variant, m measured)) {
	for _, v := range variants {
		if m, ok := r.measured[v.key]; ok {
			row(v, m)
		}
	}
}

// conditions describes the conditions that all variants share.
func (r *results) conditions() string {
	rounds := "one round"
	if r.rounds > 1 {
		rounds = fmt.Sprintf("the best of %d rounds", r.rounds)
	}
	return fmt.Sprintf("%d events of %d bytes in %d partitions; each loop is a process with one session (one member of the group), GOMAXPROCS=%d and a commit every %v (a0: after every poll); %s",
		r.events, r.size, partitions, processors(), commitInterval, rounds)
}

// print writes the table, the missed goals, and a line NAME=VALUE for each number.
func (r *results) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n%s\n%s\n\n", r.machine, r.broker, r.conditions())
	fmt.Fprintf(w, "%-4s %-64s %-14s %10s %14s %8s\n", "", "loop", "guarantee", "events/s", "CPU us/event", "MiB")
	r.rows(func(v variant, m measured) {
		fmt.Fprintf(w, "%-4s %-64s %-14s %10.0f %14.3f %8.0f\n", v.key, v.name, v.guarantee, m.rate, m.micros, m.memory)
	})
	fmt.Fprintln(w)
	for _, n := range r.ratios() {
		if !n.met {
			fmt.Fprintf(w, "missed: %s (%s)\n", n.name, n.goal)
		}
	}
	for _, n := range r.ratios() {
		fmt.Fprintf(w, "%s=%.3f\n", n.name, n.value)
	}
}

// markdown returns the results for docs/benchmarks.md.
func (r *results) markdown() string {
	var s strings.Builder
	fmt.Fprintf(&s, "Measured on %s: %s. Broker: %s. %s.\n\n", r.day, r.machine, r.broker, upper(r.conditions()))
	s.WriteString("| | loop | guarantee | events/s | CPU, us/event | memory, MiB |\n| --- | --- | --- | ---: | ---: | ---: |\n")
	r.rows(func(v variant, m measured) {
		fmt.Fprintf(&s, "| %s | %s | `%s` | %.0f | %.3f | %.0f |\n", v.key, v.name, v.guarantee, m.rate, m.micros, m.memory)
	})
	s.WriteString("\n| number | value | goal | |\n| --- | ---: | --- | --- |\n")
	for _, n := range r.ratios() {
		met := "met"
		switch {
		case !n.met:
			met = "missed"
		case strings.Contains(n.goal, "information"):
			met = ""
		}
		fmt.Fprintf(&s, "| `%s` | %.3f | %s | %s |\n", n.name, n.value, n.goal, met)
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
