package deploy

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// edits compares the topology with the one that was applied last.
func (p *plan) edits(ctx context.Context, w *worker.Worker, cluster kafka.Description) error {
	t := w.Topology
	states := map[string]bool{}
	for _, pl := range t.Pipelines {
		for _, s := range chain.StateTopics(t, pl, 0) {
			states[s.Name] = true
		}
	}
	byName := map[string]*topology.Pipeline{}
	p.kept = map[string]bool{}
	for _, pl := range t.Pipelines {
		byName[pl.Name], p.kept[pl.Name] = pl, true
	}
	for _, pl := range t.Pipelines {
		if _, was := p.Applied.Pipelines[pl.Name]; !was {
			p.added(pl)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Applied.Pipelines)) {
		was, pl := p.Applied.Pipelines[name], byName[name]
		if pl == nil {
			if err := p.removed(ctx, w, cluster, name, was); err != nil {
				return err
			}
			continue
		}
		p.changed(was, pl)
		p.changedStages(was, pl)
		for _, s := range was.Stages {
			if _, there := cluster.Topics[s.State]; s.State == "" || states[s.State] || !there {
				continue
			}
			hint := fmt.Sprintf("give the stage the name %s again; to remove it for good, allow this edit and delete topic %s later", s.Name, s.State)
			p.refuse(editOrphanedState, name+"/"+s.Name, hint, "stage %s of pipeline %s was removed or renamed: its state on topic %s would not be used any more%s", s.Name, name, s.State, renamed(was, pl))
		}
		if g := cluster.Groups[p.Applied.Name+"-"+name]; g.Members > 0 && p.Applied.Hash != p.Hash {
			p.note("pipeline:"+name, "%s with the topology of their start: restart the workers after apply", map[bool]string{true: "1 session runs", false: fmt.Sprintf("%d sessions run", g.Members)}[g.Members == 1])
		}
	}
	p.projections(t)
	p.changedSettings(t)
	return nil
}

// added handles a pipeline that the last applied topology does not have. A pipeline that
// was renamed is such a pipeline, too.
func (p *plan) added(pl *topology.Pipeline) {
	var to []string
	for _, topic := range pl.Writes() {
		to = append(to, topic.Name)
	}
	p.note("pipeline:"+pl.Name, "new: it starts at the beginning of %s, and writes the result of every event there to %s", pl.From.Name, strings.Join(to, ", "))
	for _, name := range slices.Sorted(maps.Keys(p.Applied.Pipelines)) {
		was := p.Applied.Pipelines[name]
		i := slices.IndexFunc(to, func(topic string) bool { return slices.Contains(was.To, topic) })
		if p.kept[name] || was.From != pl.From.Name || i < 0 {
			continue
		}
		p.refuse(editRewritten, pl.Name, "keep the name "+name+"; or write to a new topic, and let readers change to it",
			"pipeline %s starts at the beginning of %s and writes to %s, to which the removed pipeline %s has written: readers see every event a second time", pl.Name, pl.From.Name, to[i], name)
	}
}

// projections compares the projections with those that were applied last.
func (p *plan) projections(t *topology.Topology) {
	kept := map[string]bool{}
	for _, proj := range t.Projections {
		kept[proj.Name] = true
		was, ok := p.Applied.Folds[proj.Name]
		switch {
		case !ok:
			p.note("projection:"+proj.Name, "new: it folds %s from its beginning, and publishes every state on %s", proj.From.Name, proj.Snapshots.Name)
		case was.From != proj.From.Name:
			p.refuse(editProjection, proj.Name, "give the new projection another name, and remove this one when nobody asks it any more",
				"projection %s folded %s and would fold %s: its states and its history are discarded, and %s is folded from its beginning", proj.Name, was.From, proj.From.Name, proj.From.Name)
		case was.Snapshots != proj.Snapshots.Name:
			p.refuse(editProjection, proj.Name, "keep the topic "+was.Snapshots+"; or give the new projection another name, and let readers change to it",
				"projection %s published on %s and would publish on %s: its states are discarded and folded again from the beginning of %s, and readers of %s get no more changes", proj.Name, was.Snapshots, proj.Snapshots.Name, proj.From.Name, was.Snapshots)
		case proj.Fold.WithHash(was.Fold) == nil:
			p.note("projection:"+proj.Name, "its fold changed: the live version continues until `projector rebuild %s` has built the new one and `projector promote %s` makes it live", proj.Name, proj.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Applied.Folds)) {
		if was := p.Applied.Folds[name]; !kept[name] {
			p.refuse(editProjection, name, "keep the name if you renamed it; otherwise allow this edit, and delete topic "+was.Snapshots+" later",
				"projection %s was removed: its states and its history cannot be asked for any more, and readers of %s get no more changes", name, was.Snapshots)
		}
	}
}

// renamed names the new stage that may be the missing one under another name, as the
// end of a message; "" if there is none.
func renamed(was deployedPipeline, pl *topology.Pipeline) string {
	for _, s := range pl.Stages {
		_, keeps := s.Built.(stage.Keeper)
		if keeps && !slices.ContainsFunc(was.Stages, func(old deployedStage) bool { return old.Name == s.Name }) {
			return ", and " + s.Name + " would start with empty state"
		}
	}
	return ""
}

// removed handles a pipeline that the topology does not have any more.
func (p *plan) removed(ctx context.Context, w *worker.Worker, cluster kafka.Description, name string, was deployedPipeline) error {
	group := p.Applied.Name + "-" + name
	lag := int64(0)
	_, there := cluster.Topics[was.From]
	if there {
		done, total, err := kafka.GroupProgress(ctx, w.Kafka, group, was.From)
		if err != nil {
			return err
		}
		lag = total - done
	}
	if !there {
		p.note("pipeline:"+name, "removed, and its source %s is gone or hidden: whether it read everything is unknown", was.From)
	} else if lag > 0 {
		p.refuse(editRemoved, name, "let it read to the end before you remove it; if you renamed it, use the old name: a new pipeline starts at the beginning of the topic",
			"pipeline %s was removed, but its group %s has not read %d offsets of %s yet", name, group, lag, was.From)
	} else {
		p.note("pipeline:"+name, "removed after it read everything; its group %s can be deleted", group)
	}
	for _, s := range was.Stages {
		if s.State != "" {
			p.note("pipeline:"+name, "the state of its stage %s is on topic %s, which can be deleted", s.Name, s.State)
		}
	}
	return nil
}

// changed compares a pipeline with the one that was applied last, without its stages.
func (p *plan) changed(was deployedPipeline, pl *topology.Pipeline) {
	if was.From != pl.From.Name {
		p.refuse(editFrom, pl.Name, "create a pipeline with another name for "+pl.From.Name+", and remove this one when it has read everything",
			"pipeline %s read %s and would read %s: its offsets and its state do not carry over, and it would not read the rest of %s", pl.Name, was.From, pl.From.Name, was.From)
	}
	if was.Guarantee != pl.Guarantee && pl.Guarantee == topology.AtLeastOnce {
		p.refuse(editGuarantee, pl.Name, "keep "+was.Guarantee, "pipeline %s would write %s: after a crash it may write events twice", pl.Name, pl.Guarantee)
	} else if was.Guarantee != pl.Guarantee {
		p.note("pipeline:"+pl.Name, "guarantee: %s -> %s", was.Guarantee, pl.Guarantee)
	}
	var to []string
	for _, t := range pl.Writes() {
		to = append(to, t.Name)
	}
	if !reflect.DeepEqual(was.To, to) {
		p.note("pipeline:"+pl.Name, "its output topics change from %s to %s", strings.Join(was.To, ", "), strings.Join(to, ", "))
	}
	if was.DeadLetter != pl.DeadLetter.Name {
		p.note("pipeline:"+pl.Name, "its dead-letter topic changes from %s to %s", was.DeadLetter, pl.DeadLetter.Name)
	}
	receipts := ""
	if pl.Receipts != nil {
		receipts = pl.Receipts.Name
	}
	if was.Receipts != receipts {
		p.note("pipeline:"+pl.Name, "its receipt topic changes from %s to %s", cmp.Or(was.Receipts, "none"), cmp.Or(receipts, "none"))
	}
}

// changedStages compares the stages of a pipeline with those that were applied last.
// Orphaned state is not its subject.
func (p *plan) changedStages(was deployedPipeline, pl *topology.Pipeline) {
	for _, s := range pl.Stages {
		i := slices.IndexFunc(was.Stages, func(old deployedStage) bool { return old.Name == s.Name })
		if i < 0 {
			p.note("stage:"+pl.Name+"/"+s.Name, "new")
			continue
		}
		before, err := time.ParseDuration(cmp.Or(was.Stages[i].Remembers, "0s"))
		switch now := stage.Retention(s.Built); {
		case err != nil || before == now || was.Stages[i].State == "":
		case now > before:
			p.note("stage:"+pl.Name+"/"+s.Name, "it keeps ids for %v instead of %v; ids that are gone do not come back, so the new period is complete only after %v more", now, before, now-before)
		default:
			p.note("stage:"+pl.Name+"/"+s.Name, "it keeps ids for %v instead of %v: older ids are dropped", now, before)
		}
	}
	for _, old := range was.Stages {
		if old.State == "" && !slices.ContainsFunc(pl.Stages, func(s topology.Stage) bool { return s.Name == old.Name }) {
			p.note("stage:"+pl.Name+"/"+old.Name, "removed")
		}
	}
}
