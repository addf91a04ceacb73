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
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/reader"
)

// versionDiff is in what two versions of a projection differ, partition by
// partition at the same offset.
type versionDiff struct {
	Projection string                `json:"projection"`
	Old        int                   `json:"old"`
	New        int                   `json:"new"`
	Offsets    map[int32]int64       `json:"offsets"`    // at which they were compared
	Aggregates int                   `json:"aggregates"` // of either
	Same       int                   `json:"same"`
	Differ     int                   `json:"differ"`   // in some field, or there in one alone
	OnlyOld    int                   `json:"only_old"` // there in the old one alone
	OnlyNew    int                   `json:"only_new"`
	Unknown    int                   `json:"unknown"` // not compared: changed since, and no history is kept
	Fields     map[string]*fieldDiff `json:"fields"`
	IDs        []string              `json:"ids"` // that differ, the first of them
	More       bool                  `json:"more,omitempty"`

	samples int
}

// fieldDiff is in what a field differs.
type fieldDiff struct {
	Differ  int          `json:"differ"` // aggregates
	Samples []diffSample `json:"samples"`
}

type diffSample struct {
	ID  string          `json:"id"`
	Old json.RawMessage `json:"old,omitempty"` // missing if the version has no such field
	New json.RawMessage `json:"new,omitempty"`
}

func DiffCommand(e *cli.Env) *cobra.Command {
	var o *operator
	samples, ids := 3, 100
	cmd := &cobra.Command{
		Use:   "diff NAME",
		Short: "Compare the newest version of a projection with the live one",
		Long: `Asks the workers for both versions' states, partition by partition and as of the
same offset, and shows which aggregates differ, in which fields, with samples. It
may be asked while events come in: what has changed since that offset is taken
back by the history. Without history (--no-history) such aggregates are left out,
and counted.

What was found is written down, so that promote knows that somebody has looked.

Exit code 0 whether something differs or not.`,
		Example: `  projector diff user
  projector diff user --json | jq .fields`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			w, state, pr, err := o.projection(ctx, args[0])
			if err != nil {
				return err
			}
			to, err := newest(state, pr.Name)
			if err != nil {
				return err
			}
			d := &versionDiff{Projection: pr.Name, Old: state.Live[pr.Name].Version, New: to.Version, Offsets: map[int32]int64{}, Fields: map[string]*fieldDiff{}, IDs: []string{}, samples: samples}
			bounds, err := kafka.TopicBounds(ctx, w.Kafka, pr.From.Name, false)
			if err != nil {
				return err
			}
			if err := d.compare(ctx, state, len(bounds), ids); err != nil {
				return err
			}
			record := control.DiffRecord{Format: control.Format, Old: d.Old, New: d.New, Offsets: d.Offsets, Aggregates: d.Aggregates, Differ: d.Differ, Time: e.Now().UTC(), By: e.Build.Version}
			if err := o.say(ctx, w, control.Record{Key: control.DiffKey(pr.Name), Value: record}); err != nil {
				return err
			}
			if o.json {
				return cli.PrintJSON(e.Stdout, d)
			}
			return d.print(e.Stdout)
		},
	}
	o = newOperator(e, cmd.Flags())
	cmd.Flags().IntVar(&samples, "samples", samples, "aggregates to show for each field")
	cmd.Flags().IntVar(&ids, "ids", ids, "ids to list of those that differ")
	return cmd
}

// askTimeout is how long a worker gets to pick up.
const askTimeout = 5 * time.Second

// compare compares all partitions.
func (d *versionDiff) compare(ctx context.Context, state *control.State, partitions, ids int) error {
	running, err := askVersions(ctx, state)
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
			return fmt.Errorf("no worker that can be reached has partition %d of version %d: it is being handed over or restored, or workers are down; try again when `projector status` shows both at work", p, map[bool]int{true: d.New, false: d.Old}[ok1])
		}
		d.Offsets[p] = min(from.Offsets[p], to.Offsets[p])
		if err := d.partition(ctx, p, from.At, to.At, ids); err != nil {
			return fmt.Errorf("comparing partition %d: %w", p, err)
		}
	}
	d.More = d.Differ > len(d.IDs)
	return nil
}

// askVersions asks all workers what they have.
func askVersions(ctx context.Context, state *control.State) (out []projector.RunningVersion, err error) {
	var faults []error
	for _, instance := range slices.Sorted(maps.Keys(state.Workers)) {
		addr := state.Workers[instance].Address
		var here []projector.RunningVersion
		if err := askWorker(ctx, addr, "/internal/v1/versions", func(body io.Reader) error { return json.NewDecoder(body).Decode(&here) }); err != nil {
			faults = append(faults, fmt.Errorf("worker %s: %w", instance, err)) // it may be one that was killed
			continue
		}
		for _, r := range here {
			r.At = addr
			out = append(out, r)
		}
	}
	if len(out) == 0 {
		return nil, errors.Join(append(faults, errors.New("no worker can be asked: is `projector run` at work, and can it be reached at its --advertise address?"))...)
	}
	return out, nil
}

// errNotYet is what a worker says that has not heard yet of what it is asked for.
var errNotYet = errors.New("the worker has not heard of it yet")

func askWorker(ctx context.Context, addr, path string, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: askTimeout}).DialContext, ResponseHeaderTimeout: forgetPatience}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusConflict {
		return errNotYet
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // it is only for the message
		return fmt.Errorf("%s answers %s: %s", addr, resp.Status, bytes.TrimSpace(text))
	}
	return read(resp.Body)
}

// lines reads one version's states of a partition, one after the other.
type lines struct {
	scan *bufio.Scanner
	line reader.StateLine
	done bool
}

func newLines(r io.Reader) *lines {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 64<<20)
	return &lines{scan: s}
}

func (l *lines) next() error {
	l.line = reader.StateLine{}
	if !l.scan.Scan() {
		return cmp.Or(l.scan.Err(), io.ErrUnexpectedEOF)
	}
	err := json.Unmarshal(l.scan.Bytes(), &l.line)
	l.done = l.line.End
	return err
}

// partition merges what the two versions have.
func (d *versionDiff) partition(ctx context.Context, p int32, from, to string, ids int) error {
	path := func(version int) string {
		return fmt.Sprintf("/internal/v1/versions/%s/%d/%d?at=%d", d.Projection, version, p, d.Offsets[p])
	}
	return askWorker(ctx, from, path(d.Old), func(r1 io.Reader) error {
		return askWorker(ctx, to, path(d.New), func(r2 io.Reader) error {
			a, b := newLines(r1), newLines(r2)
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
				if err := d.see(a.line, b.line, order, ids); err != nil {
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
		})
	})
}

// see compares two aggregates of one id. order says which of them is there: both
// if it is 0, the first if it is less.
func (d *versionDiff) see(a, b reader.StateLine, order, ids int) error {
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
			d.Same++ // in another order
			return nil
		}
	}
	if d.Differ++; len(d.IDs) < ids {
		d.IDs = append(d.IDs, id)
	}
	return nil
}

// deletedField stands among the fields for whether an aggregate is deleted.
const deletedField = "(deleted)"

// fields notes in which fields two states differ, and returns how many there are.
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
		if f.Differ++; len(f.Samples) < d.samples {
			f.Samples = append(f.Samples, diffSample{id, was[name], is[name]})
		}
	}
	return n, nil
}

// leaves sets the values of an object by dotted path; what is no object is one
// value.
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
	out.Line("  differ   %d, of which %d only in version %d and %d only in version %d", d.Differ, d.OnlyOld, d.Old, d.OnlyNew, d.New)
	if d.Unknown > 0 {
		out.Line("  unknown  %d: they have changed since, and the workers keep no history; compare once more when fewer events come in", d.Unknown)
	}
	for _, name := range slices.Sorted(maps.Keys(d.Fields)) {
		f := d.Fields[name]
		out.Line("  field %s: differs in %s", name, cli.Plural(f.Differ, "aggregate"))
		for _, s := range f.Samples {
			out.Line("    %s: %s -> %s", s.ID, missing(s.Old), missing(s.New))
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

func missing(v json.RawMessage) string {
	if v == nil {
		return "(no such field)"
	}
	return string(v)
}
