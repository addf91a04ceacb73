package topology

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// longGrace is the grace period that is long enough for any backlog.
const longGrace = 7 * 24 * time.Hour

// warnWindows warns of windows over a topic whose partitions mix events of several
// partitions of a source. The clock of a window is the latest event time of its
// partition. A pipeline that works off a backlog reads the partitions of its source one
// after the other, in large pieces: the first piece sets the clock to its end, and the
// older events of the next piece are late. Live, nothing is late.
func (l *loader) warnWindows() {
	for _, d := range l.projections {
		p := d.projection
		if p.From == nil || p.Fold == nil || p.Fold.Window().Size == 0 {
			continue
		}
		why, source := l.mixes(p.From, map[*Topic]bool{})
		if why == "" || p.Fold.Window().Grace >= maxBacklog(source) {
			continue
		}
		from, _ := d.args.Find("from")
		l.warning(RuleMixedTimes, from.Value,
			fmt.Sprintf("fold the windows from %s if its key allows it, or set grace to the longest time that a pipeline may be behind, such as grace: %.0fh", source.Name, maxBacklog(source).Hours()),
			"%s has windows, and %s. A pipeline that works off a backlog, or starts again from the beginning, writes one partition of the source far ahead of another, so most events of the backlog are late for their windows",
			d.what, why)
	}
}

// maxBacklog returns the age that events of a topic can have, at most longGrace.
func maxBacklog(t *Topic) time.Duration {
	ms, err := strconv.ParseInt(t.Config["retention.ms"], 10, 64)
	if err != nil || ms < 0 || ms > longGrace.Milliseconds() {
		return longGrace
	}
	return time.Duration(ms) * time.Millisecond
}

// mixes returns why a partition of a topic can hold events of several partitions, and the
// topic of these; "" if it cannot.
func (l *loader) mixes(t *Topic, seen map[*Topic]bool) (why string, source *Topic) {
	seen[t] = true
	var writers []*declared
	for _, d := range l.pipelines {
		if slices.Contains(d.pipeline.Writes(), t) && d.pipeline.From != nil {
			writers = append(writers, d)
		}
	}
	for _, d := range writers {
		if why := l.mixedBy(d, t); why != "" {
			return why, d.pipeline.From
		}
	}
	for _, d := range writers {
		if from := d.pipeline.From; from != writers[0].pipeline.From {
			return fmt.Sprintf("%s and %s write the events of %s and %s to %s", writers[0].what, d.what, writers[0].pipeline.From.Name, from.Name, t.Name), from
		}
	}
	for _, d := range writers {
		if from := d.pipeline.From; !seen[from] {
			if why, source := l.mixes(from, seen); why != "" {
				return why, source
			}
		}
	}
	return "", nil
}

// mixedBy returns why a pipeline writes events of several partitions to one partition of
// a topic; "" if it does not.
func (l *loader) mixedBy(d *declared, t *Topic) string {
	p := d.pipeline
	if p.From.Partitions <= 1 {
		return ""
	}
	for typ := range p.Types {
		if typ >= len(p.Targets) || !slices.Contains(p.Targets[typ], t) {
			continue
		}
		if _, stage := l.rekeyed(d, typ); stage != "" {
			return fmt.Sprintf("stage %s of %s gives the events of %s another key, so a partition of %s has events of several partitions of %s", stage, d.what, p.From.Name, t.Name, p.From.Name)
		}
	}
	switch {
	case p.From.Bare != nil && p.From.Bare.Key.Text != "":
		return fmt.Sprintf("%s writes the events of %s under the key that the topic declares, so a partition of %s can have events of several partitions of %s", d.what, p.From.Name, t.Name, p.From.Name)
	case t.Partitions%p.From.Partitions != 0:
		return fmt.Sprintf("%s writes the %d partitions of %s to %d partitions of %s, so one of these has events of several", d.what, p.From.Partitions, p.From.Name, t.Partitions, t.Name)
	}
	return ""
}
