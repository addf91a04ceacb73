package projector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"millrace/pipeline/kafka"
	"millrace/pipeline/kafka/admin"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/topology"
)

// A release may be unable to compile a live version, because it gives the expressions of
// the fold another meaning. Workers of the earlier release continue such a version, and
// this release replaces it:
//
//  1. A worker records the topology's definition as the next version, the successor.
//  2. All workers of this release build the successor. They are not ready until it has
//     caught up, and answer from it then.
//  3. Workers of the earlier release own the partitions of the live version, and so those
//     of all other versions in its group. This release follows the other versions, sends
//     questions about one of their aggregates to its owner ([forwarder]), and
//     stays out of the group.
//  4. When the group of the live version has no members, the successor is made live.

// upgradeInterval is how often a worker looks whether a step of an upgrade is done.
const upgradeInterval = time.Second

// upgrade takes the next step with each live version that cannot be compiled. It returns
// when it must be called again, 0 if there is no such version.
func (s *supervisor) upgrade(ctx context.Context, state *control.State, p *plan) (again time.Duration) {
	pending := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(p.lost)) {
		again = upgradeInterval
		lost := p.lost[name]
		what := fmt.Sprintf("version %d of projection %s, which is live, cannot be compiled by this release (%v)", lost.record.Version, name, lost.err)
		s.leave(ctx, lost.record.Group)
		if lost.successor == nil {
			pending[name] = what + "; the topology's definition has to be built as the next version"
			s.tell(name, "this release cannot compile the live version, and builds the topology's definition as the next version",
				"projection", name, "live", lost.record.Version, "err", lost.err)
			if err := s.succeed(ctx, state, name); err != nil && ctx.Err() == nil {
				s.w.Log.Warn("cannot record the next version of a projection; trying again", "projection", name, "err", err)
			}
			continue
		}
		label := lost.successor.label()
		if !s.caughtUp[label] {
			if left := s.behind(state, lost.successor); left != nil {
				pending[name] = fmt.Sprintf("%s; version %d is being built: %v", what, lost.successor.record.Version, left)
				continue
			}
			s.caughtUp[label] = true
			s.tell(name, "the next version of a projection has caught up, and answers here; it becomes live when no worker of an earlier release has partitions",
				"projection", name, "version", lost.successor.record.Version, "live", lost.record.Version)
		}
		if err := s.promote(ctx, name, lost); err != nil && ctx.Err() == nil {
			s.w.Log.Warn("cannot make the next version of a projection live; trying again", "projection", name, "err", err)
		}
	}
	s.roster.setPending(pending)
	return again
}

// leave leaves a group of an earlier release: it would wait for a static member, which this
// worker was before it was upgraded, to come back.
func (s *supervisor) leave(ctx context.Context, group string) {
	if s.replica || s.left[group] {
		return
	}
	err := admin.RemoveMembers(ctx, s.w.Kafka, group, s.w.Flags.Instance)
	if s.left[group] = err == nil; err != nil && ctx.Err() == nil {
		s.w.Log.Warn("cannot leave the group of the earlier release; trying again", "group", group, "err", err)
	}
}

// succeed records the topology's definition as the successor of a live version. Two
// workers may do so at the same time: the later record wins.
func (s *supervisor) succeed(ctx context.Context, state *control.State, name string) error {
	if s.replica {
		return nil // workers of the group do so
	}
	i := slices.IndexFunc(s.w.Topology.Projections, func(pr *topology.Projection) bool { return pr.Name == name })
	record, err := s.define(s.w.Topology.Projections[i], state.NextVersion(name))
	if err != nil {
		return err
	}
	return control.WriteRecords(ctx, s.w.Kafka, s.control.Topic, time.Now(), control.Record{Key: control.VersionKey(name, record.Version), Value: record})
}

// behind returns what a successor has left to do, nil if it has caught up: all partitions
// have an owner, and those of this worker have reached the end of the log as of their
// assignment.
func (s *supervisor) behind(state *control.State, v *wantedVersion) error {
	for _, l := range s.roster.all() {
		i := slices.IndexFunc(l.wanted, func(one wantedVersion) bool { return one.label() == v.label() })
		if i < 0 {
			continue
		}
		if l.follows {
			return errors.Join(l.follower.ready(), s.restores.ready(map[string]bool{l.group: true}))
		}
		r := l.readers[i]
		owners := state.Owners(r.Group(), r.Topic())
		if n := r.NumPartitions(); len(owners) < n {
			return fmt.Errorf("%d of %d partitions are with no worker yet", n-len(owners), n)
		}
		return s.restores.ready(map[string]bool{l.group: true})
	}
	return errors.New("it does not run yet")
}

// promote makes a successor that has caught up live, unless a worker of an earlier
// release has partitions of the version that it replaces.
func (s *supervisor) promote(ctx context.Context, name string, lost *lostVersion) error {
	if s.replica {
		return nil // workers of the group do so
	}
	group := lost.record.Group
	d, err := kafka.Describe(ctx, s.w.Kafka, nil, []string{group}, nil)
	if err != nil {
		return err
	}
	if err := d.Hidden[group]; err != nil {
		return fmt.Errorf("group %s: %w", group, err)
	}
	if d.Groups[group].Members > 0 {
		return nil
	}
	now := time.Now().UTC()
	r := control.LiveRecord{Format: control.Format, Version: lost.successor.record.Version, Previous: lost.record.Version, Time: now, By: lost.successor.record.By}
	s.w.Log.Warn("no worker of an earlier release has partitions of the live version any more; making the next version live",
		"projection", name, "version", r.Version, "previous", r.Previous)
	return control.WriteRecords(ctx, s.w.Kafka, s.control.Topic, now, control.Record{Key: control.LiveKey(name), Value: r})
}

// tell logs a line about something unless it was the last line about it.
func (s *supervisor) tell(about, line string, args ...any) {
	if s.told[about] != line {
		s.told[about] = line
		s.w.Log.Warn(line, args...)
	}
}

// tellUnknown logs versions, other than live ones, that cannot be compiled.
func (s *supervisor) tellUnknown(p *plan) {
	for _, label := range slices.Sorted(maps.Keys(p.unknown)) {
		s.tell("version "+label, "this release cannot compile a version that is not live, and does not run it", "version", label, "err", p.unknown[label])
	}
}
