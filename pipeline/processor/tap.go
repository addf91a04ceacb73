package processor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/worker"
)

func TapCommand(e *cli.Env) *cobra.Command {
	t := &tapper{env: e, server: &worker.ServerFlags{Env: e}}
	cmd := &cobra.Command{
		Use:   "tap",
		Short: "Watch events before and after each stage of a running worker",
		Long: `Connects to a worker that runs with --tap, and shows events as they are handled:
how they come, what each stage does to them, and what becomes of them. It is a
sample: at most --rate events a second, each with all that happens to it. What a
slow terminal does not take is dropped, and counted.

A worker shows the events of the partitions that it has. Of a batch that is rolled
back they are shown again.`,
		Example: `  processor tap
  processor tap --stage stamp --key user-1 --limit 5
  curl -N '127.0.0.1:9101/v1/tap?type=OrderCreated&rate=1'`,
		RunE: func(cmd *cobra.Command, _ []string) error { return t.run(cmd.Context()) },
	}
	flags := cmd.Flags()
	flags.StringVar(&t.server.Listen, "listen", worker.ProcessorListen, "the worker's `host:port`")
	flags.StringVar(&t.server.ListenFile, "listen-file", "", "`file` in which the worker wrote its address")
	flags.StringSliceVar(&t.pipelines, "pipeline", nil, "only these `pipelines`")
	flags.StringSliceVar(&t.stages, "stage", nil, "only at these `stages`; decode and encode are what comes before and after them")
	flags.StringSliceVar(&t.types, "type", nil, "only events of these `types`")
	flags.StringVar(&t.key, "key", "", "only events of this `key`")
	flags.StringSliceVar(&t.mask, "mask", nil, "do not show these fields, by `path` or name; key is the key, and * all values")
	flags.Float64Var(&t.rate, "rate", chain.TapRate, "at most `n` events per second")
	flags.IntVarP(&t.limit, "limit", "n", 0, "end after `n` events")
	flags.BoolVar(&t.json, "json", false, "print the lines as they come, JSON")
	e.BindEnv(flags, "listen", "listen-file")
	t.keyed = func() bool { return flags.Changed("key") }
	return cmd
}

type tapper struct {
	env                            *cli.Env
	server                         *worker.ServerFlags
	pipelines, stages, types, mask []string
	key                            string
	keyed                          func() bool
	rate                           float64
	limit                          int
	json                           bool
}

func (t *tapper) run(ctx context.Context) error {
	addr, err := t.server.DialAddress()
	if err != nil {
		return err
	}
	q := url.Values{"rate": {strconv.FormatFloat(t.rate, 'g', -1, 64)}, "limit": {strconv.Itoa(t.limit)}}
	for name, values := range map[string][]string{"pipeline": t.pipelines, "stage": t.stages, "type": t.types, "mask": t.mask} {
		if len(values) > 0 {
			q[name] = values
		}
	}
	if t.keyed() {
		q.Set("key", t.key)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+chain.TapPath+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // and no proxy
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%w; is a worker running there?", err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return fmt.Errorf("the worker at %s shows no events: run it with --tap", addr)
	default:
		text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return errors.Join(fmt.Errorf("the worker at %s: %s", addr, bytes.TrimSpace(text)), err)
	}
	view := tapView{Printer: cli.Printer{Out: t.env.Stdout}, colour: t.env.Colors()}
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadBytes('\n')
		switch {
		case ctx.Err() != nil, errors.Is(err, io.EOF):
			return view.Err // whoever watches has seen enough, or the worker has
		case err != nil:
			return fmt.Errorf("the worker at %s: %w", addr, err)
		case len(bytes.TrimSpace(line)) == 0:
			continue
		case t.json:
			view.Line("%s", bytes.TrimSpace(line))
		default:
			var l chain.TraceLine
			if err := json.Unmarshal(line, &l); err != nil {
				return fmt.Errorf("the worker at %s says what this program does not understand: %w", addr, err)
			}
			view.show(l)
		}
		if view.Err != nil {
			return view.Err
		}
	}
}

// tapView prints lines for people: what changes, below the event that it happens
// to.
type tapView struct {
	cli.Printer
	colour bool

	last    chain.Place
	entered map[chain.Place]json.RawMessage // the newest events, as they came to the stage they are at
}

// maxEntered bounds the events that are under way at a time.
const maxEntered = 1000

func (v *tapView) paint(code, text string) string {
	if !v.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// harmless returns text that does nothing to a terminal.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, text)
}

func (v *tapView) show(l chain.TraceLine) {
	if l.Dropped > 0 {
		v.Line("%s", v.paint("33", fmt.Sprintf("(%s not shown: this end was too slow)", cli.Plural(int(l.Dropped), "line"))))
	}
	if l.Stage == "" {
		return
	}
	at := chain.Place{Topic: l.Topic, Partition: l.Partition, Offset: l.Offset}
	if v.entered == nil || len(v.entered) > maxEntered {
		v.entered = map[chain.Place]json.RawMessage{}
	}
	_, known := v.entered[at]
	if at != v.last {
		v.Line("%s %s key %s %s %s", l.Time.Format("2006-01-02T15:04:05.000Z"), v.paint("1", at.String()), harmless(cli.Quote(l.Key)), l.Type, v.paint("2", l.Pipeline))
		v.last = at
	}
	before := v.entered[at]
	if l.At == chain.MomentNames[pipeline.Entering] {
		v.entered[at] = l.Event
		if !known {
			v.Line("  %s", harmless(string(l.Event)))
		}
		return
	}
	colour := map[string]string{"passed": "32", "filtered": "33", "skipped": "33", "failed": "31"}[l.At]
	v.Line("  %-20s %s%s", l.Stage, v.paint(colour, l.At), harmless(tapDetail(before, l)))
}

// tapDetail says what a stage did.
func tapDetail(before json.RawMessage, l chain.TraceLine) string {
	var parts []string
	if l.Error != "" {
		parts = append(parts, cli.Clip(l.Error, 300))
	}
	if before != nil && l.Event != nil {
		parts = append(parts, chain.Changes(before, l.Event)...)
	}
	if l.NewKey != nil {
		parts = append(parts, "new key "+cli.Quote(*l.NewKey))
	}
	if len(l.To) > 0 {
		parts = append(parts, "to "+strings.Join(l.To, ", "))
	}
	if len(parts) == 0 {
		return ""
	}
	return "  " + strings.Join(parts, ", ")
}
