package resolve

import "millrace/pipeline/codec"

// fromUnion reads the branch that the writer chose. A branch that does not fit rejects
// the value.
func (c *compiler) fromUnion(w, r *codec.Node) *reading {
	out := &reading{identity: r.Kind == codec.Union && len(w.Branches) <= len(r.Branches)}
	branches := make([]readFunc, len(w.Branches))
	var why *misfit
	fits := 0
	for i, b := range w.Branches {
		branch, to := c.branch(b, r)
		branches[i] = branch.read
		if out.identity = out.identity && to == i && branch.identity; branch.never != nil {
			out.add(Change{Partial, branch.never.path, branch.never.msg})
			why = branch.never
			continue
		}
		fits++
		out.add(branch.changes...)
	}
	if fits == 0 {
		if why == nil || len(w.Branches) > 1 {
			why = misfitf("no branch of %s can become %s", w, r)
		}
		return refused(why)
	}
	out.read = func(st *state, dst, enc []byte) ([]byte, []byte, error) {
		branch, rest, err := codec.ReadLong(enc)
		if err != nil {
			return dst, rest, err
		}
		return branches[branch](st, dst, rest)
	}
	if out.identity {
		out.read = copied(w)
	}
	return out
}

// branch returns how a value of the writer's type is read as r, and the number of the
// branch that it becomes if r is a union. identity holds for the value without the branch.
func (c *compiler) branch(w, r *codec.Node) (*reading, int) {
	if r.Kind != codec.Union {
		return c.pair(w, r), -1
	}
	to, p, why := c.selected(w, r)
	if why != nil {
		return refused(why), -1
	}
	return &reading{identity: p.identity, changes: p.changes, read: intoBranch(to, p)}, to
}

// toUnion reads a value that is not of a union as a branch of one.
func (c *compiler) toUnion(w, r *codec.Node) *reading {
	p, _ := c.branch(w, r)
	return &reading{read: p.read, never: p.never, changes: p.changes}
}

func intoBranch(number int, p *reading) readFunc {
	return func(st *state, dst, enc []byte) ([]byte, []byte, error) {
		return p.read(st, codec.AppendLong(dst, int64(number)), enc)
	}
}

// selected returns the reader's branch for values of the writer's type: the one with the
// same kind and the best match of names or, if there is none, the first that the values
// can be converted to.
func (c *compiler) selected(w, r *codec.Node) (int, *reading, *misfit) {
	best, found, equal := codec.NoMatch, -1, 0
	var chosen *reading
	for i, b := range r.Branches {
		if b.Kind != w.Kind {
			continue
		}
		match := codec.MatchExactly
		if w.Name != "" && (b != only(r) || !c.paths.special()) {
			match = codec.MatchName(w, b)
		}
		if match < best || match == codec.NoMatch {
			continue
		}
		p := c.pair(w, b)
		switch {
		case p.never != nil:
		case match > best:
			best, found, chosen, equal = match, i, p, 1
		default:
			equal++
		}
	}
	switch {
	case equal > 1:
		return 0, nil, misfitf("%s is ambiguous: it matches %d branches of %s; add an alias to one of them", w, equal, r)
	case found >= 0:
		return found, chosen, nil
	}
	for i, b := range r.Branches {
		if b.Kind == w.Kind && !isDecimal(w, b) {
			continue
		}
		if p := c.pair(w, b); p.never == nil {
			return i, p, nil
		}
	}
	return 0, nil, misfitf("%s matches no branch of %s", w, r)
}
