// Package client holds the commands of projector that ask a running worker over
// HTTP: get, list, history, why, diff, watch, blocked, release.
//
// Start at [Commands].
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/worker"
)

// Commands returns the commands that ask a running projector, as its HTTP API
// is asked.
func Commands(e *cli.Env) []*cobra.Command {
	return []*cobra.Command{
		askGet(e), askList(e), askHistory(e), askWhy(e), askDiff(e), askEvent(e), askEvents(e), askWatch(e),
	}
}

// asker asks a projector over HTTP.
type asker struct {
	env     *cli.Env
	address string
	timeout time.Duration
	json    bool
	query   url.Values
}

// askCommand returns a command that asks. Its flags beside those that all have are
// added by the caller.
func askCommand(e *cli.Env, use, short, long, example string, args cobra.PositionalArgs, run func(ctx context.Context, a *asker, args []string) error) (*cobra.Command, *asker) {
	a := &asker{env: e, query: url.Values{}}
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), a, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&a.address, "address", worker.ProjectorListen, "`host:port` or URL of a projector")
	flags.DurationVar(&a.timeout, "timeout", 30*time.Second, "how long to wait for the answer")
	flags.BoolVar(&a.json, "json", false, "print the answer as it comes, JSON")
	e.BindEnv(flags, "address")
	return cmd, a
}

// named is for commands with that many arguments, which messages name.
func named(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return fmt.Errorf("%s is missing: %s", names[len(args)], cmd.UseLine())
		}
		if len(args) > len(names) {
			return fmt.Errorf("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// bind makes a flag a parameter of the question, if it is given.
func (a *asker) bind(flags *pflag.FlagSet, flag, parameter, usage string) {
	flags.Var(&parameterFlag{a.query, parameter}, flag, usage)
}

// parameterFlag is a flag that is handed on as it is: the worker says what is
// wrong with it.
type parameterFlag struct {
	query url.Values
	name  string
}

func (f *parameterFlag) String() string {
	if f.query == nil {
		return ""
	}
	return f.query.Get(f.name)
}
func (f *parameterFlag) Set(s string) error { f.query.Set(f.name, s); return nil }
func (f *parameterFlag) Type() string       { return "string" }

// url returns the address of a question.
func (a *asker) url(query url.Values, path ...string) (string, error) {
	base := a.address
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	u, err := url.Parse(base)
	if err != nil || u.Hostname() == "" {
		return "", cli.Usagef("--address: want host:port or a URL, such as %s", worker.ProjectorListen)
	}
	for i := range path {
		path[i] = url.PathEscape(path[i])
	}
	text := strings.TrimRight(u.String(), "/") + "/v1/" + strings.Join(path, "/")
	if len(query) > 0 {
		text += "?" + query.Encode()
	}
	return text, nil
}

// open sends a question. The body of what it returns is to be closed.
func (a *asker) open(ctx context.Context, header http.Header, path ...string) (*http.Response, error) {
	at, err := a.url(a.query, path...)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", "millrace-projector/"+a.env.Build.Version)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // and no proxy
	resp, err := client.Do(req)
	switch {
	case err == nil && resp.StatusCode == http.StatusOK:
		return resp, nil
	case err == nil:
		defer resp.Body.Close()
		return nil, a.problem(resp)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("no projector answers at %s: start one with 'projector run', or say where it is with --address (env MILLRACE_ADDRESS)", a.address)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("the projector at %s did not answer within %s (--timeout)", a.address, a.timeout)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return nil, fmt.Errorf("--address: %w", dns)
	}
	return nil, err
}

// problem returns the error that an answer is.
func (a *asker) problem(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	var p struct{ Detail string }
	if json.Unmarshal(text, &p) != nil || p.Detail == "" {
		return fmt.Errorf("%s answers %s, which is not what a projector says: is --address right?", a.address, resp.Status)
	}
	if a.json {
		if _, err := a.env.Stdout.Write(text); err != nil {
			return err
		}
	}
	code := cli.ExitFailure
	if resp.StatusCode == http.StatusBadRequest {
		code = cli.ExitUsage
	}
	return &cli.ExitError{Code: code, Err: errors.New(p.Detail)}
}

// ask asks one question. The answer is printed if that is to be JSON, and then
// into is left alone and done is true.
func (a *asker) ask(ctx context.Context, into any, path ...string) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	resp, err := a.open(ctx, nil, path...)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, fmt.Errorf("the answer of %s breaks off: %w", a.address, err)
	}
	if a.json {
		var out bytes.Buffer
		if err := json.Indent(&out, body, "", "  "); err != nil {
			return false, err
		}
		_, err = out.WriteTo(a.env.Stdout)
		return true, err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return false, fmt.Errorf("%s answers with something else than this program knows: %w", a.address, err)
	}
	return false, nil
}

// What commands read of answers.
type (
	askedPosition struct {
		Partition int32    `json:"partition"`
		Offset    int64    `json:"offset"`
		Lag       int64    `json:"lag"`
		Seconds   *float64 `json:"lag_seconds"`
	}
	askedAggregate struct {
		Projection string `json:"projection"`
		Made       string `json:"projection_version"`
		askedPosition
		ID          string            `json:"id"`
		Version     int64             `json:"version"`
		Deleted     bool              `json:"deleted"`
		EventID     string            `json:"event_id"`
		EventTime   time.Time         `json:"event_time"`
		EventOffset int64             `json:"event_offset"`
		State       json.RawMessage   `json:"state"`
		Hidden      map[string]string `json:"hidden"` // by path, why an encrypted field is null
	}
	askedEvent struct {
		ID         string            `json:"id"`
		Type       string            `json:"type"`
		Time       time.Time         `json:"time"`
		Recorded   time.Time         `json:"recorded_time"`
		Projection string            `json:"projection"`
		Aggregate  string            `json:"aggregate"`
		Version    int64             `json:"version"`
		Topic      string            `json:"topic"`
		Partition  int32             `json:"partition"`
		Offset     int64             `json:"offset"`
		Event      json.RawMessage   `json:"event"`
		Hidden     map[string]string `json:"hidden"`
	}
)

func (p askedPosition) String() string {
	text := fmt.Sprintf("partition %d folded up to offset %d, lag %d", p.Partition, p.Offset, p.Lag)
	if p.Lag > 0 && p.Seconds != nil {
		text += fmt.Sprintf(" (%.1f s)", *p.Seconds)
	}
	return text
}

func asksFreshness(flags *pflag.FlagSet, a *asker) {
	a.bind(flags, "after-event", "after_event", "`id` of an event that the answer has to contain")
	a.bind(flags, "wait", "wait", "how `long` to wait for that, such as 2s")
}

func askGet(e *cli.Env) *cobra.Command {
	cmd, a := askCommand(e, "get NAME ID", "Show an aggregate, now or as it was",
		"Shows the state of an aggregate of a projection. With one of the --at flags, as it was.\n\n"+
			"Exit code 1 if there is none, or if it is not as fresh as is wanted.",
		"  projector get order o-000001\n  projector get order o-000001 --at-version 1\n  projector get user u-00001 --at-time 1997-12-31T00:00:00Z\n  projector get order o-000001 --after-event f22a92e8-db3d-5065-befb-3887c5b06ebb --wait 2s",
		named("NAME", "ID"), func(ctx context.Context, a *asker, args []string) error {
			var g askedAggregate
			if done, err := a.ask(ctx, &g, "projections", args[0], args[1]); done || err != nil {
				return err
			}
			t := a.table("FIELD", "VALUE")
			values, err := members(g.State)
			if err != nil {
				return err
			}
			for _, m := range values {
				t.row(m.name, plainJSON(m.value))
			}
			gone := ""
			if g.Deleted {
				gone = ", deleted"
			}
			t.hide(g.Hidden)
			t.say("%s %s, version %d%s, of %s by event %s", g.Projection, g.ID, g.Version, gone, stamp(g.EventTime), g.EventID)
			t.say("%s", g.askedPosition)
			return t.flush()
		})
	a.bind(cmd.Flags(), "at-version", "at_version", "as of this `version`")
	a.bind(cmd.Flags(), "at-time", "at_time", "as of this `time` of the events (RFC 3339)")
	a.bind(cmd.Flags(), "at-recorded-time", "at_recorded_time", "as of this `time` of their records (RFC 3339)")
	a.bind(cmd.Flags(), "min-version", "min_version", "least `version` that is wanted")
	asksFreshness(cmd.Flags(), a)
	return cmd
}

func askList(e *cli.Env) *cobra.Command {
	cmd, a := askCommand(e, "list [NAME]", "List projections, or the aggregates of one",
		"Lists the aggregates of a projection, a page of them: what gives the next page is said on\nstderr. Without NAME, lists the projections and how far they are,\nwhichever worker has their partitions.",
		"  projector list\n  projector list order --filter \"state.status == 'created'\" --sort -state.total_amount --limit 10",
		func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("unexpected argument %q", args[1])
			}
			return nil
		},
		func(ctx context.Context, a *asker, args []string) error {
			if len(args) == 0 {
				return a.projections(ctx)
			}
			var page struct {
				Items []askedAggregate `json:"items"`
				Next  string           `json:"next_cursor"`
			}
			if done, err := a.ask(ctx, &page, "projections", args[0]); done || err != nil {
				return err
			}
			var t *askTable
			for _, g := range page.Items {
				values, err := members(g.State)
				if err != nil {
					return err
				}
				if t == nil {
					head := []string{"ID", "VERSION", "TIME"}
					for _, m := range values {
						if m.name != "id" {
							head = append(head, strings.ToUpper(m.name))
						}
					}
					t = a.table(head...)
				}
				row := []string{g.ID, strconv.FormatInt(g.Version, 10), stamp(g.EventTime)}
				for _, m := range values {
					if m.name != "id" {
						row = append(row, plainJSON(m.value))
					}
				}
				t.row(row...)
				t.hide(g.Hidden)
			}
			if t == nil {
				t = a.table()
				t.say("none")
			}
			if page.Next != "" {
				t.say("there are more: --cursor %s", page.Next)
			}
			return t.flush()
		})
	a.query.Set("limit", "20")
	a.bind(cmd.Flags(), "filter", "filter", "`condition` in CEL over id, version, deleted, event_time and state.FIELD")
	a.bind(cmd.Flags(), "sort", "sort", "id, version, event_time or state.`FIELD`, with - before it for descending order")
	a.bind(cmd.Flags(), "limit", "limit", "how `many`, at most 1000")
	a.bind(cmd.Flags(), "cursor", "cursor", "`where` to go on, as the page before said")
	asksFreshness(cmd.Flags(), a)
	return cmd
}

// projections lists them.
func (a *asker) projections(ctx context.Context) error {
	a.query = url.Values{}
	var all struct {
		Projections []struct {
			Name       string          `json:"name"`
			Version    string          `json:"projection_version"`
			Topic      string          `json:"topic"`
			Snapshots  string          `json:"snapshots"`
			Partitions []askedPosition `json:"partitions"`
			Absent     []struct {
				Partition int32  `json:"partition"`
				Detail    string `json:"detail"`
			} `json:"absent"`
		} `json:"projections"`
	}
	if done, err := a.ask(ctx, &all, "projections"); done || err != nil {
		return err
	}
	t := a.table("NAME", "VERSION", "EVENTS", "SNAPSHOTS", "PARTITIONS", "FOLDED", "LAG")
	for _, p := range all.Projections {
		var folded, lag int64
		for _, at := range p.Partitions {
			folded, lag = folded+at.Offset, lag+at.Lag
		}
		partitions := strconv.Itoa(len(p.Partitions))
		if n := len(p.Absent); n > 0 {
			partitions += " of " + strconv.Itoa(len(p.Partitions)+n)
		}
		for _, gone := range p.Absent {
			t.say("%s, partition %d: %s", p.Name, gone.Partition, gone.Detail)
		}
		t.row(p.Name, p.Version[:min(8, len(p.Version))], p.Topic, p.Snapshots, partitions, strconv.FormatInt(folded, 10), strconv.FormatInt(lag, 10))
	}
	return t.flush()
}

func askHistory(e *cli.Env) *cobra.Command {
	cmd, a := askCommand(e, "history NAME ID", "Show the events of an aggregate, the last first", "",
		"  projector history order o-000001", named("NAME", "ID"),
		func(ctx context.Context, a *asker, args []string) error {
			var page struct {
				Items  []askedEvent `json:"items"`
				Before int64        `json:"next_before"`
			}
			if done, err := a.ask(ctx, &page, "projections", args[0], args[1], "history"); done || err != nil {
				return err
			}
			t := a.table("VERSION", "TIME", "TYPE", "EVENT", "PARTITION", "OFFSET", "DATA")
			for _, ev := range page.Items {
				t.row(strconv.FormatInt(ev.Version, 10), stamp(ev.Time), ev.Type, ev.ID, strconv.Itoa(int(ev.Partition)), strconv.FormatInt(ev.Offset, 10), ev.data())
				t.hide(ev.Hidden)
			}
			if page.Before > 0 {
				t.say("there are more: --before %d", page.Before)
			}
			return t.flush()
		})
	a.query.Set("limit", "20")
	a.bind(cmd.Flags(), "limit", "limit", "how `many`, at most 1000")
	a.bind(cmd.Flags(), "before", "before", "those before this `version`")
	return cmd
}

// data returns what an event says, without the envelope if it has the usual one.
func (ev *askedEvent) data() string {
	var envelope struct {
		Data json.RawMessage `json:"data"`
	}
	if json.Unmarshal(ev.Event, &envelope) == nil && envelope.Data != nil {
		return plainJSON(envelope.Data)
	}
	return plainJSON(ev.Event)
}

func askWhy(e *cli.Env) *cobra.Command {
	cmd, _ := askCommand(e, "why NAME ID", "Show which event last changed each field of an aggregate", "",
		"  projector why order o-000001", named("NAME", "ID"),
		func(ctx context.Context, a *asker, args []string) error {
			var why struct {
				askedAggregate
				Fields  map[string]askedEvent `json:"fields"`
				Unknown []string              `json:"unknown"`
				Before  int64                 `json:"unknown_before"`
			}
			if done, err := a.ask(ctx, &why, "projections", args[0], args[1], "why"); done || err != nil {
				return err
			}
			leaves, err := leavesOf(why.State, "", func(path string) bool { _, ok := why.Fields[path]; return ok })
			if err != nil {
				return err
			}
			t := a.table("FIELD", "VALUE", "VERSION", "TIME", "TYPE", "EVENT")
			for _, m := range leaves {
				ev, ok := why.Fields[m.name]
				if !ok {
					t.row(m.name, plainJSON(m.value), "-", "", "never changed", "")
					for _, name := range why.Unknown {
						if name == m.name {
							t.rows[len(t.rows)-1][4] = fmt.Sprintf("before version %d", why.Before)
						}
					}
					continue
				}
				t.row(m.name, plainJSON(m.value), strconv.FormatInt(ev.Version, 10), stamp(ev.Time), ev.Type, ev.ID)
			}
			t.hide(why.Hidden)
			t.say("%s %s, version %d; %s", why.Projection, why.ID, why.Version, why.askedPosition)
			return t.flush()
		})
	return cmd
}

func askDiff(e *cli.Env) *cobra.Command {
	cmd, a := askCommand(e, "diff-versions NAME ID", "Show what differs between two versions of an aggregate",
		"Shows the fields that differ between two versions of an aggregate; without flags, what its\nlast event changed. ('projector diff' compares two versions of a projection.)",
		"  projector diff-versions order o-000001\n  projector diff-versions order o-000001 --from 0 --to 2", named("NAME", "ID"),
		func(ctx context.Context, a *asker, args []string) error {
			type side struct {
				Version int64     `json:"version"`
				EventID string    `json:"event_id"`
				Time    time.Time `json:"event_time"`
			}
			var d struct {
				From   side `json:"from"`
				To     side `json:"to"`
				Fields map[string]struct {
					From json.RawMessage `json:"from"`
					To   json.RawMessage `json:"to"`
				} `json:"fields"`
			}
			if done, err := a.ask(ctx, &d, "projections", args[0], args[1], "diff"); done || err != nil {
				return err
			}
			t := a.table("FIELD", fmt.Sprintf("VERSION %d", d.From.Version), fmt.Sprintf("VERSION %d", d.To.Version))
			for _, path := range slices.Sorted(maps.Keys(d.Fields)) {
				t.row(path, plainJSON(d.Fields[path].From), plainJSON(d.Fields[path].To))
			}
			t.say("version %d of %s by event %s", d.To.Version, stamp(d.To.Time), d.To.EventID)
			return t.flush()
		})
	a.bind(cmd.Flags(), "from", "from", "the older `version`; 0 is before the first event (default: the one before the other)")
	a.bind(cmd.Flags(), "to", "to", "the newer `version` (default: the latest)")
	return cmd
}

func askEvent(e *cli.Env) *cobra.Command {
	cmd, _ := askCommand(e, "event ID", "Show an event, and where it was applied", "",
		"  projector event f22a92e8-db3d-5065-befb-3887c5b06ebb", named("ID"),
		func(ctx context.Context, a *asker, args []string) error {
			var found struct {
				Applied []askedEvent `json:"applied"`
			}
			if done, err := a.ask(ctx, &found, "events", args[0]); done || err != nil {
				return err
			}
			t := a.table("PROJECTION", "AGGREGATE", "VERSION", "TIME", "TYPE", "TOPIC", "PARTITION", "OFFSET")
			for _, ev := range found.Applied {
				t.row(ev.Projection, ev.Aggregate, strconv.FormatInt(ev.Version, 10), stamp(ev.Time), ev.Type, ev.Topic, strconv.Itoa(int(ev.Partition)), strconv.FormatInt(ev.Offset, 10))
				t.hide(ev.Hidden)
			}
			if err := t.flush(); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.env.Stdout, "\n%s\n", found.Applied[0].Event)
			return err
		})
	return cmd
}

func askEvents(e *cli.Env) *cobra.Command {
	cmd, a := askCommand(e, "events TYPE", "List the events of a type, the latest first", "",
		"  projector events OrderPaid --limit 5", named("TYPE"),
		func(ctx context.Context, a *asker, args []string) error {
			a.query.Set("type", args[0])
			var page struct {
				Items []askedEvent `json:"items"`
				Next  string       `json:"next_cursor"`
			}
			if done, err := a.ask(ctx, &page, "events"); done || err != nil {
				return err
			}
			t := a.table("TIME", "AGGREGATE", "VERSION", "EVENT", "PARTITION", "OFFSET", "DATA")
			for _, ev := range page.Items {
				t.row(stamp(ev.Time), ev.Aggregate, strconv.FormatInt(ev.Version, 10), ev.ID, strconv.Itoa(int(ev.Partition)), strconv.FormatInt(ev.Offset, 10), ev.data())
				t.hide(ev.Hidden)
			}
			if page.Next != "" {
				t.say("there are more: --cursor %s", page.Next)
			}
			return t.flush()
		})
	a.query.Set("limit", "20")
	a.bind(cmd.Flags(), "limit", "limit", "how `many`, at most 1000")
	a.bind(cmd.Flags(), "cursor", "cursor", "`where` to go on, as the page before said")
	return cmd
}
