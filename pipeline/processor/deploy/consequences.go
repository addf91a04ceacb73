package deploy

import (
	"maps"
	"slices"
	"strings"

	"millrace/pipeline/topology"
)

// A consequence is what a changed parameter means for what was written before.
type consequence struct {
	// refuse is the kind of the edit if the plan refuses it; "" makes a note.
	refuse editKind
	// text says what happens; "" if another check reports the change, or if nothing that
	// was written depends on the parameter.
	text string
	hint string // of a refused edit
}

const (
	differs = "what the pipeline writes differs from now on; what it wrote before stays as it is"
	routes  = "events go to other topics from now on; what was written before stays where it is"
)

var (
	reported = consequence{} // by another check, with its values
	output   = consequence{text: differs}
	version  = consequence{text: "the meaning of its events changes: the projections that read it are rebuilt as new versions, and what was written before stays as it is"}
	nothing  = consequence{} // neither state nor output depends on it
)

// consequences has an entry for each of [topology.Parameters]. * is any name.
var consequences = map[string]consequence{
	"topics/*/partitions":  reported,
	"topics/*/config":      reported,
	"topics/*/replication": {text: "an existing topic keeps its replication factor: change it with the tools of Kafka"},
	"topics/*/types":       {text: "records of other types than these become dead letters, or are ignored by projections"},
	"topics/*/envelope":    version,
	"topics/*/id":          {text: "events have other ids from now on: dedupe and projections do not recognize a duplicate of an event before the change, and projections are rebuilt as new versions"},
	"topics/*/time":        version,
	"topics/*/key":         version,
	"topics/*/headers":     output,

	"topics/*/identity":    {text: "events have another identity from now on: dedupe and projections do not recognize a duplicate of an event before the change"},
	"topics/*/key_format":  version,
	"topics/*/key_schema":  version,
	"topics/*/partitioner": {text: "other records count as misplaced from now on"},
	"topics/*/tombstone":   {text: "records without a value are handled in another way from now on"},
	"topics/*/subjects":    {text: "schemas are registered under other subjects; the old subjects stay"},

	"tables/*/topic":  {text: "lookups see the rows of the new topic from the next start of a worker on"},
	"tables/*/file":   output,
	"tables/*/rows":   {text: "lookups see the new rows from the next start of a worker on; what was written before stays as it is"},
	"tables/*/key":    output,
	"tables/*/schema": output,

	"pipelines/*/from":        reported,
	"pipelines/*/to":          reported,
	"pipelines/*/dead_letter": reported,
	"pipelines/*/receipts":    reported,
	"pipelines/*/guarantee":   reported,
	"pipelines/*/stages":      {text: "stages are added, removed or in another order: " + differs},

	"pipelines/*/stages/dedupe/by": {editState, "it remembers ids of another expression: duplicates of events before the change pass",
		"keep the old expression, or give the stage another name, and allow this edit when a duplicate does no harm"},
	"pipelines/*/stages/dedupe/on": {editState, "it does not remember the events of types that it did not handle: their duplicates pass, and types that it handles no longer are not compared",
		"keep the old types, or allow this edit when a duplicate does no harm"},
	"pipelines/*/stages/dedupe/within":   reported,
	"pipelines/*/stages/dedupe/on_error": output,

	"pipelines/*/stages/mask/key":    {editMask, "the same value gets another digest from now on: joins, lookups and aggregates by a masked field do not find what was written before", "keep the key, or write to a new topic and read the source from its start"},
	"pipelines/*/stages/mask/salt":   {editMask, "the same value gets another digest from now on: joins, lookups and aggregates by a masked field do not find what was written before", "keep the salt, or write to a new topic and read the source from its start"},
	"pipelines/*/stages/mask/fields": output,

	"pipelines/*/stages/rekey/key": {editKey, "the events of one aggregate have another key from now on: they are in other partitions than the events before, so their order across the change is lost, and projections by the key have two aggregates",
		"write to a new topic and read the source from its start"},
	"pipelines/*/stages/route/cases":     {text: routes},
	"pipelines/*/stages/route/match":     {text: routes},
	"pipelines/*/stages/route/otherwise": {text: routes},

	"pipelines/*/stages/http/timeout":     nothing,
	"pipelines/*/stages/http/retries":     nothing,
	"pipelines/*/stages/http/concurrency": nothing,
	"pipelines/*/stages/http/cache":       nothing,

	"projections/*/from":        reported,
	"projections/*/snapshots":   reported,
	"projections/*/key":         reported, // the fold has another hash: it is a new version
	"projections/*/state":       reported,
	"projections/*/on":          reported,
	"projections/*/window":      reported,
	"projections/*/grace":       reported,
	"projections/*/keep":        reported,
	"projections/*/wait":        reported,
	"projections/*/on_gap":      reported,
	"projections/*/max_state":   reported,
	"projections/*/partitioner": reported,
	"projections/*/duplicates":  reported,
	"projections/*/late":        {text: "late events go to the new topic from now on, or are only counted"},
	"projections/*/publish":     {text: "snapshots are published at other times from now on; their content is the same"},

	"encryption/key_topic": {editKeys, "the keys on the old topic are not used any more: all fields that were encrypted with them stay unreadable", "keep the topic"},
	"encryption/subject":   {text: "fields belong to other data subjects from now on: `projector forget` of a subject does not reach what was written before under another one"},
}

// consequenceOf returns the consequence of a changed parameter. kind is the kind of its
// stage, if it is one of a stage. Of most parameters of stages, only later output
// depends.
func consequenceOf(path, kind string) consequence {
	parts := strings.Split(path, "/")
	if len(parts) > 2 {
		parts[1] = "*"
	}
	if len(parts) == 5 {
		parts[3] = kind
	}
	if c, ok := consequences[strings.Join(parts, "/")]; ok {
		return c
	}
	return output
}

// changedSettings reports the parameters that differ from those of the last apply, and
// that no other check reports. Objects that are new or gone are not its subject.
func (p *plan) changedSettings(t *topology.Topology) {
	was, now := p.Applied.Settings, t.Settings()
	if was == nil {
		return // an older release applied it
	}
	kinds := map[string]string{}
	for _, pl := range t.Pipelines {
		for _, s := range pl.Stages {
			kinds["pipelines/"+pl.Name+"/stages/"+s.Name] = s.Kind.Name
		}
	}
	both := maps.Clone(was)
	maps.Copy(both, now)
	for _, path := range slices.Sorted(maps.Keys(both)) {
		object, param := path[:strings.LastIndexByte(path, '/')], path[strings.LastIndexByte(path, '/')+1:]
		if was[path] == now[path] || !hasObject(was, object) || !hasObject(now, object) {
			continue
		}
		c := consequenceOf(path, kinds[object])
		name := strings.Replace(strings.TrimPrefix(object, "pipelines/"), "/stages/", "/", 1)
		switch {
		case c.text == "":
		case c.refuse != "":
			p.refuse(c.refuse, name+"/"+param, c.hint, "%s of %s changed: %s", param, object, c.text)
		default:
			p.note(noteName(object), "%s changed: %s", param, c.text)
		}
	}
}

// hasObject reports whether settings are of an object.
func hasObject(settings map[string]string, object string) bool {
	for path := range settings {
		if strings.HasPrefix(path, object+"/") {
			return true
		}
	}
	return false
}

// noteName returns the name of an object in notes: stage:PIPELINE/STAGE, topic:NAME.
func noteName(object string) string {
	kind, name, _ := strings.Cut(object, "/")
	if pl, stage, ok := strings.Cut(name, "/stages/"); ok {
		return "stage:" + pl + "/" + stage
	}
	if name == "" {
		return kind
	}
	return strings.TrimSuffix(kind, "s") + ":" + name
}
