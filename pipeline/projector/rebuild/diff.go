package rebuild

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/reader"
	"millrace/pipeline/worker"
)

// versionDiff is the difference between two versions of a projection. Each partition is
// compared at one offset.
type versionDiff struct {
	Projection string                `json:"projection"`
	Old        int                   `json:"old"`
	New        int                   `json:"new"`
	Offsets    map[int32]int64       `json:"offsets"`    // of the comparison, by partition
	Aggregates int                   `json:"aggregates"` // in either version
	Same       int                   `json:"same"`
	Differ     int                   `json:"differ"`   // in some field, or only in one version
	OnlyOld    int                   `json:"only_old"` // only in the old version
	OnlyNew    int                   `json:"only_new"`
	Unknown    int                   `json:"unknown"` // not compared: changed since the offset, and there is no history
	OldBlocked int64                 `json:"blocked_old"`
	NewBlocked int64                 `json:"blocked_new"`
	Fields     map[string]*fieldDiff `json:"fields"` // by dotted path
	IDs        []string              `json:"ids"`    // of the first aggregates that differ
	More       bool                  `json:"more,omitempty"`

	maxSamples, maxIDs int
}

// fieldDiff is the difference in one field.
type fieldDiff struct {
	Differ  int          `json:"differ"` // number of aggregates
	Samples []diffSample `json:"samples"`
}

// diffSample holds the values of a field in one aggregate. A value is missing if the version
// has no such field.
type diffSample struct {
	ID  string          `json:"id"`
	Old json.RawMessage `json:"old,omitempty"`
	New json.RawMessage `json:"new,omitempty"`
}

func diffCommand(e *cli.Env) *cobra.Command {
	var o *operator
	samples, ids := 3, 100
	cmd := &cobra.Command{
		Use:   "diff NAME",
		Short: "Compare the newest version of a projection with the live one",
		Long: `Reads the states of both versions from the workers, partition by partition at the
same offset, and shows which aggregates differ, in which fields, with samples. It
works while events arrive: the history restores the states at that offset. Without
history (--no-history), aggregates that have changed since are only counted.

The result is recorded, because promote requires a comparison.

Exit code 0 whether or not the versions differ.`,
		Example: `  projector diff user
  projector diff user --json | jq .fields`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d := &versionDiff{maxSamples: samples, maxIDs: ids}
			return o.diff(cmd.Context(), args[0], d)
		},
	}
	o = newOperator(e, cmd.Flags())
	cmd.Flags().IntVar(&samples, "samples", samples, "show `n` aggregates for each field")
	cmd.Flags().IntVar(&ids, "ids", ids, "list `n` ids of aggregates that differ")
	e.CompleteProjection(cmd)
	return cmd
}

// diff compares the newest version of a projection with the live one, records the result on
// the control topic and prints it.
func (o *operator) diff(ctx context.Context, name string, d *versionDiff) error {
	w, state, pr, err := o.projection(ctx, name)
	if err != nil {
		return err
	}
	to, err := newest(state, pr.Name)
	if err != nil {
		return err
	}
	d.Projection, d.Old, d.New = pr.Name, state.Live[pr.Name].Version, to.Version
	d.Offsets, d.Fields, d.IDs = map[int32]int64{}, map[string]*fieldDiff{}, []string{}
	bounds, err := kafka.TopicBounds(ctx, w.Kafka, pr.From.Name, false)
	if err != nil {
		return err
	}
	if err := d.compare(ctx, w, state, len(bounds)); err != nil {
		return err
	}
	record := control.DiffRecord{Format: control.Format, Old: d.Old, New: d.New, Offsets: d.Offsets, Aggregates: d.Aggregates, Differ: d.Differ, Time: o.env.Now().UTC(), By: o.env.Build.Version}
	if err := o.write(ctx, w, control.Record{Key: control.DiffKey(pr.Name), Value: record}); err != nil {
		return err
	}
	if o.json {
		return cli.PrintJSON(o.env.Stdout, d)
	}
	return d.print(o.env.Stdout)
}

// compare compares all partitions.
func (d *versionDiff) compare(ctx context.Context, w *worker.Worker, state *control.State, partitions int) error {
	running, err := runningVersions(ctx, w, state)
	if err != nil {
		return err
	}
	find := func(version int, partition int32) (projector.RunningVersion, bool) {
		i := slices.IndexFunc(running, func(r projector.RunningVersion) bool {
			_, ok := r.Offsets[partition]
			return ok && r.Projection == d.Projection && r.Version == version
		})
		if i < 0 {
			return projector.RunningVersion{}, false
		}
		return running[i], true
	}
	for p := range int32(partitions) {
		from, ok1 := find(d.Old, p)
		to, ok2 := find(d.New, p)
		if !ok1 || !ok2 {
			missing := d.Old
			if ok1 {
				missing = d.New
			}
			return fmt.Errorf("no reachable worker has partition %d of version %d: a worker is taking it over or restoring it, or workers are down; try again when `projector status` shows progress of both versions", p, missing)
		}
		d.Offsets[p] = min(from.Offsets[p], to.Offsets[p])
		if err := d.comparePartition(ctx, w, p, from.At, to.At); err != nil {
			return fmt.Errorf("comparing partition %d: %w", p, err)
		}
	}
	d.OldBlocked, d.NewBlocked = countBlocked(running, d.Projection, d.Old), countBlocked(running, d.Projection, d.New)
	d.More = d.Differ > len(d.IDs)
	return nil
}

// runningVersions reads from all workers which partitions of which versions they have.
func runningVersions(ctx context.Context, w *worker.Worker, state *control.State) (out []projector.RunningVersion, err error) {
	var faults []error
	for _, instance := range slices.Sorted(maps.Keys(state.Workers)) {
		addr := state.Workers[instance].Address
		var here []projector.RunningVersion
		if err := getWorker(ctx, w.Dial, addr, "/internal/v1/versions", func(body io.Reader) error { return json.NewDecoder(body).Decode(&here) }); err != nil {
			faults = append(faults, fmt.Errorf("worker %s: %w", instance, err)) // the worker may have been killed
			continue
		}
		for _, r := range here {
			r.At = addr
			out = append(out, r)
		}
	}
	if len(out) == 0 {
		return nil, errors.Join(append(faults, errors.New("no worker answers: is `projector run` running, and reachable at its --advertise address?"))...)
	}
	return out, nil
}

// states reads one version's states of a partition, in the order of their ids.
type states struct {
	scan *bufio.Scanner
	line reader.StateLine // the current state
	done bool             // the line was the end
}

func newStates(r io.Reader) *states {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 64<<20)
	return &states{scan: s}
}

func (l *states) next() error {
	l.line = reader.StateLine{}
	if !l.scan.Scan() {
		return cmp.Or(l.scan.Err(), io.ErrUnexpectedEOF)
	}
	err := json.Unmarshal(l.scan.Bytes(), &l.line)
	l.done = l.line.End
	return err
}

// comparePartition compares a partition. from and to are the addresses of the workers that
// have it in the old and the new version.
func (d *versionDiff) comparePartition(ctx context.Context, w *worker.Worker, p int32, from, to string) error {
	path := func(version int) string {
		return fmt.Sprintf("/internal/v1/versions/%s/%d/%d?at=%d", d.Projection, version, p, d.Offsets[p])
	}
	return getWorker(ctx, w.Dial, from, path(d.Old), func(r1 io.Reader) error {
		return getWorker(ctx, w.Dial, to, path(d.New), func(r2 io.Reader) error {
			return d.merge(newStates(r1), newStates(r2))
		})
	})
}

// merge compares the states of two versions, which are in the order of their ids.
func (d *versionDiff) merge(a, b *states) error {
	if err := errors.Join(a.next(), b.next()); err != nil {
		return err
	}
	for !a.done || !b.done {
		order := strings.Compare(a.line.ID, b.line.ID)
		if a.done {
			order = 1
		} else if b.done {
			order = -1
		}
		if err := d.add(a.line, b.line, order); err != nil {
			return err
		}
		if order <= 0 {
			if err := a.next(); err != nil {
				return err
			}
		}
		if order >= 0 {
			if err := b.next(); err != nil {
				return err
			}
		}
	}
	return nil
}

// add adds one aggregate to the result. If order is 0, both versions have it; if order is
// negative, only the old version (a); else only the new version (b).
func (d *versionDiff) add(a, b reader.StateLine, order int) error {
	d.Aggregates++
	id := a.ID
	switch {
	case order < 0 && a.Unknown, order > 0 && b.Unknown, order == 0 && (a.Unknown || b.Unknown):
		d.Unknown++
		return nil
	case order < 0:
		d.OnlyOld++
	case order > 0:
		d.OnlyNew++
		id = b.ID
	case a.Deleted == b.Deleted && bytes.Equal(a.State, b.State):
		d.Same++
		return nil
	default:
		fields, err := d.fields(id, a, b)
		if err != nil {
			return err
		}
		if fields == 0 {
			d.Same++ // only the order of the fields differs
			return nil
		}
	}
	if d.Differ++; len(d.IDs) < d.maxIDs {
		d.IDs = append(d.IDs, id)
	}
	return nil
}

// deletedField is the name of the pseudo-field that records whether an aggregate is deleted.
const deletedField = "(deleted)"

// fields adds the fields in which two states differ, and returns their number.
func (d *versionDiff) fields(id string, a, b reader.StateLine) (n int, err error) {
	was, is := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if err := errors.Join(leaves(was, "", a.State), leaves(is, "", b.State)); err != nil {
		return 0, err
	}
	if a.Deleted != b.Deleted {
		was[deletedField], is[deletedField] = json.RawMessage(fmt.Sprint(a.Deleted)), json.RawMessage(fmt.Sprint(b.Deleted))
	}
	names := map[string]bool{}
	for name := range was {
		names[name] = true
	}
	for name := range is {
		names[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if bytes.Equal(was[name], is[name]) {
			continue
		}
		n++
		f := d.Fields[name]
		if f == nil {
			f = &fieldDiff{Samples: []diffSample{}}
			d.Fields[name] = f
		}
		if f.Differ++; len(f.Samples) < d.maxSamples {
			f.Samples = append(f.Samples, diffSample{id, was[name], is[name]})
		}
	}
	return n, nil
}

// leaves adds the values of a JSON object to out, by dotted path. Arrays count as single
// values.
func leaves(out map[string]json.RawMessage, path string, value json.RawMessage) error {
	if !bytes.HasPrefix(value, []byte("{")) {
		out[path] = value
		return nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(value, &fields); err != nil {
		return err
	}
	for name, v := range fields {
		under := name
		if path != "" {
			under = path + "." + name
		}
		if err := leaves(out, under, v); err != nil {
			return err
		}
	}
	return nil
}

func (d *versionDiff) print(w io.Writer) error {
	out := cli.Printer{Out: w}
	out.Line("%s: version %d (live) and version %d, %s compared at the same offsets", d.Projection, d.Old, d.New, cli.Plural(d.Aggregates, "aggregate"))
	out.Line("  same     %d", d.Same)
	out.Line("  differ   %d: %d only in version %d, %d only in version %d", d.Differ, d.OnlyOld, d.Old, d.OnlyNew, d.New)
	if d.Unknown > 0 {
		out.Line("  unknown  %d: changed since, and the workers keep no history; compare again when fewer events arrive", d.Unknown)
	}
	if d.OldBlocked > 0 || d.NewBlocked > 0 {
		out.Line("  blocked  %d in version %d, %d in version %d: an event cannot be folded, and later ones wait", d.OldBlocked, d.Old, d.NewBlocked, d.New)
	}
	for _, name := range slices.Sorted(maps.Keys(d.Fields)) {
		f := d.Fields[name]
		out.Line("  field %s: differs in %s", name, cli.Plural(f.Differ, "aggregate"))
		for _, s := range f.Samples {
			out.Line("    %s: %s -> %s", s.ID, valueText(s.Old), valueText(s.New))
		}
	}
	if len(d.IDs) > 0 {
		more := ""
		if d.More {
			more = ", ..."
		}
		out.Line("  ids: %s%s", strings.Join(d.IDs, ", "), more)
	}
	return out.Err
}

// valueText returns the text of a value, which is nil if the version has no such field.
func valueText(v json.RawMessage) string {
	if v == nil {
		return "(no such field)"
	}
	return string(v)
}
