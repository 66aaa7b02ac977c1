package demo

// invite prints what to paste into another terminal.
func (s *story) invite() error {
	p := s.print
	before := p.w
	p.w = s.o.Out // that much is said even when quiet
	defer func() { p.w = before }()
	p.heading("Your turn", "Paste these into another terminal.")
	s.inviteRequests()
	s.inviteReading()
	p.linef("")
	p.linef("%s", s.print.sgr(bold, "The gate is running; Ctrl-C ends it."))
	return p.err
}

// paste prints a command line under a line that says what comes of it. The
// line begins the line, so that it can be taken whole.
func (s *story) paste(what, line string) {
	s.print.linef("")
	s.print.linef("%s", s.print.sgr(faint, "# "+what))
	s.print.linef("%s", line)
}

// curl is the beginning of every curl line.
func (s *story) curl(flags string, who person) string {
	line := "curl " + flags
	if s.o.NoProxy {
		line += " --noproxy '*'"
	}
	line += " --cacert " + quote(s.dir.path(certFile))
	if who != nobody {
		line += ` -H "Authorization: Bearer $(cat ` + quote(s.dir.path("tokens/"+who.File)) + `)"`
	}
	return line + " "
}

func (s *story) inviteRequests() {
	url := s.gateURL
	s.paste("200: the clerk reads an order", s.curl("-i", clerk)+url+"/v1/orders/1042")
	s.paste("403: the clerk changes it", s.curl("-i", clerk)+`-d '{"status":"gone"}' `+url+"/v1/orders/1042")
	s.paste("200: the admin changes it", s.curl("-i", admin)+`-d '{"status":"shipped"}' `+url+"/v1/orders/1042")
	s.paste("401: yesterday's token", s.curl("-i", late)+url+"/v1/orders/1042")
	s.paste("401: no token", s.curl("-i", nobody)+url+"/v1/orders/1042")
	s.paste("502: the upstream is down", s.curl("-i", admin)+url+"/v1/reports")
	s.paste("200 five times, then 429: the auditor lists the orders ten times at once", s.curl(`-s -o /dev/null -w '%{http_code}\n'`, auditor)+"'"+url+"/v1/orders?n=[1-10]'")
}

func (s *story) inviteReading() {
	gatebook := func(args ...string) string {
		return quoteAll(append([]string{s.o.Program, "-c", s.dir.path(configFile)}, args...))
	}
	s.paste("the ten newest records", gatebook("search", "--limit", "10"))
	s.paste("what was refused to Cleo; opening personal parts is recorded", gatebook("search", "--reveal", `personal.sub == "cleo" && status >= 400`))
	s.paste("how many of what", gatebook("count", "--by", "status", `kind == "request"`))
	s.paste("one record in full: the id is the X-Request-Id of an answer", gatebook("show", s.denied.id, "--reveal"))
	s.paste("a proof of it", gatebook("prove", s.denied.id, "-o", s.dir.path(proofFile)))
	s.paste("which anybody can check with the public key alone", quoteAll([]string{s.o.Program, "verify", s.dir.path(proofFile), "--key-file", s.dir.path(vkeyFile)}))
	s.paste("the whole book", gatebook("verify"))
	s.paste("how the server is", gatebook("status"))
}
