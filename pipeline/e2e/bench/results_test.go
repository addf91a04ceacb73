package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWriteSectionReplacesOnlyItsSection(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.md")
	for _, step := range []struct{ section, text string }{{"one", "1\n"}, {"two", "2\n"}, {"one", "1 again\n"}} {
		if err := writeSection(file, step.section, step.text); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	want := "\n<!-- one: written by make bench -->\n1 again\n<!-- one: end -->\n\n<!-- two: written by make bench -->\n2\n<!-- two: end -->\n"
	if err != nil || string(got) != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if err := os.WriteFile(file, []byte("<!-- one: end -->"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeSection(file, "one", "1\n"); err == nil {
		t.Error("a file with a missing marker was accepted")
	}
}

func TestEventHasItsOwnIDAndKeys(t *testing.T) {
	kinds := []eventKind{
		{name: "OrderCreated", value: []byte("id 000000000000 key 99999999 user 88888888"), id: 3, keys: []int{20}, user: 34},
		{name: "UserCreated", value: []byte("id 000000000000 key 99999999"), id: 3, keys: []int{20}},
	}
	for n, want := range map[int][2]string{
		2:  {"o-00000000", "id 000000000002 key 00000000 user 00005838"},
		19: {"u-00000002", "id 000000000019 key 00000002"},
	} {
		if r := event(kinds, n); string(r.Key) != want[0] || string(r.Value) != want[1] {
			t.Errorf("event %d: %s: %s", n, r.Key, r.Value)
		}
	}
}

func TestRatiosAreOfMeansAndShowSingleRounds(t *testing.T) {
	r := results{measured: map[string][]measured{
		"a":  {{micros: 1, rate: 100}, {micros: 3, rate: 0}, {micros: 2, rate: 300}},
		"b":  {{micros: 2, rate: 50}, {micros: 3, rate: 80}, {micros: 4, rate: 150}},
		"db": {{micros: 2, rate: 100}},
	}}
	got := map[string]spread{}
	for _, n := range r.ratios() {
		got[n.name] = n.value
	}
	for name, want := range map[string]spread{
		"ratio_b_over_a":     {mean: 1.5, min: 1, max: 2, rounds: 3},
		"ratio_eos_over_alo": {mean: 0.5, min: 0.5, max: 0.5, rounds: 1},
	} {
		if got[name] != want {
			t.Errorf("%s: got %+v, want %+v", name, got[name], want)
		}
	}
	if len(got) != 2 {
		t.Errorf("ratios of variants that were not run: %+v", got)
	}
	// A rate of 0 is unknown.
	if got := r.spread("a", rate).cell(0); got != "200 (100 to 300)" {
		t.Errorf("the rate of a is %s", got)
	}
	if got := r.spread("db", micros).cell(3); got != "2.000" {
		t.Errorf("the CPU time of a single round is %s", got)
	}
}

func TestBothChainsAreReadFromTheOutputOfGo(t *testing.T) {
	doubles, decimals, err := chainsIn([]byte("cpu: X\nBenchmarkChain-2 \t 100\t 203.4 ns/op\t 0 B/op\t 0 allocs/op\nBenchmarkChainDecimals-2 \t 100\t 301.5 ns/op\t 16 B/op\t 1 allocs/op\nPASS\n"))
	if err != nil || doubles != (chain{203.4, 0}) || decimals != (chain{301.5, 1}) {
		t.Errorf("%v, %v, %v", doubles, decimals, err)
	}
	if _, _, err := chainsIn([]byte("PASS\n")); err == nil {
		t.Error("an output without results was accepted")
	}
}
