package demo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"millrace/pipeline/cli"
)

// Report is the result of a demo; make demo writes it to build/demo.json.
type Report struct {
	EventsIn       int             `json:"events_in"`
	EventsOut      int             `json:"events_out"`
	EventsFiltered int             `json:"events_filtered"`
	DeadLetters    int             `json:"dead_letters"`
	ByType         map[string]int  `json:"by_type"` // of the events in
	OutByType      map[string]int  `json:"out_by_type"`
	FilteredByType map[string]int  `json:"filtered_by_type"`
	Users          int             `json:"users"`
	Orders         int             `json:"orders"`
	UsersByStatus  map[string]int  `json:"users_by_status"`
	OrdersByStatus map[string]int  `json:"orders_by_status"`
	TotalCents     int64           `json:"total_amount_cents"` // of all orders
	Seconds        float64         `json:"seconds"`            // from the first event sent to the last one folded
	Steps          steps           `json:"steps"`
	ExampleUser    json.RawMessage `json:"example_user,omitempty"`
	ExampleOrder   json.RawMessage `json:"example_order,omitempty"`
	Disagreements  []string        `json:"disagreements"` // empty if every number agrees
}

// steps holds the times when steps were done, in seconds. Start counts from the beginning,
// the others from the start of sending. They overlap.
type steps struct {
	Start   float64 `json:"start"` // all programs are ready
	Inject  float64 `json:"inject"`
	Process float64 `json:"process"`
	Project float64 `json:"project"`
}

func (r *Report) disagree(format string, args ...any) {
	r.Disagreements = append(r.Disagreements, fmt.Sprintf(format, args...))
}

// maxShown is the largest number of disagreements to print. The JSON report has all.
const maxShown = 20

// print writes the report as text.
func (r *Report) print(w io.Writer) {
	fmt.Fprintf(w, "\nEvents    %s in = %s out + %s filtered + %s dead letters\n\n",
		cli.GroupDigits(int64(r.EventsIn)), cli.GroupDigits(int64(r.EventsOut)), cli.GroupDigits(int64(r.EventsFiltered)), cli.GroupDigits(int64(r.DeadLetters)))
	fmt.Fprintf(w, "  %-14s %11s %11s %11s\n", "", "in", "out", "filtered")
	for _, t := range slices.Sorted(maps.Keys(r.ByType)) {
		fmt.Fprintf(w, "  %-14s %11s %11s %11s\n", t, cli.GroupDigits(int64(r.ByType[t])), cli.GroupDigits(int64(r.OutByType[t])), cli.GroupDigits(int64(r.FilteredByType[t])))
	}
	fmt.Fprintf(w, "\nUsers     %s: %s\n", cli.GroupDigits(int64(r.Users)), counts(r.UsersByStatus))
	fmt.Fprintf(w, "Orders    %s: %s; total %s.%02d\n", cli.GroupDigits(int64(r.Orders)), counts(r.OrdersByStatus), cli.GroupDigits(r.TotalCents/100), r.TotalCents%100)
	fmt.Fprintf(w, "\nTime      since the start of sending; the steps overlap\n\n")
	for _, step := range []struct {
		name    string
		seconds float64
	}{{"all sent", r.Steps.Inject}, {"all processed", r.Steps.Process}, {"all folded", r.Steps.Project}} {
		fmt.Fprintf(w, "  %-14s %9.2f s %11s events/s\n", step.name, step.seconds, cli.GroupDigits(int64(float64(r.EventsIn)/max(step.seconds, 0.001))))
	}
	fmt.Fprintf(w, "\nA user    %s\n\nAn order  %s\n\n", indented(r.ExampleUser), indented(r.ExampleOrder))
	if len(r.Disagreements) == 0 {
		fmt.Fprintln(w, "Every number agrees, event by event and state by state.")
		return
	}
	fmt.Fprintf(w, "Not every number agrees:\n\n")
	for _, s := range r.Disagreements[:min(maxShown, len(r.Disagreements))] {
		fmt.Fprintln(w, "  "+s)
	}
	if more := len(r.Disagreements) - maxShown; more > 0 {
		fmt.Fprintf(w, "  and %d more\n", more)
	}
}

// counts returns numbers by status as text.
func counts(m map[string]int) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, cli.GroupDigits(int64(m[k]))+" "+k)
	}
	if parts == nil {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// indented returns JSON on several lines, in the column of the report.
func indented(raw json.RawMessage) string {
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "          ", "  "); err != nil {
		return "none"
	}
	return out.String()
}
