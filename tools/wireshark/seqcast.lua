-- Seqcast in Wireshark and tshark: protocol version 2, to the byte as docs/protocol.md has it.
--
-- Copy it to the plugins folder (Help > About > Folders), or: tshark -X lua_script:seqcast.lua -r x.pcapng
-- Frames are known by their first bytes, on whatever port. docs/capture.md says more.

local seqcast = Proto("seqcast", "Seqcast")

local KINDS = { "DATA", "HEARTBEAT", "ACK", "NAK", "REPAIR", "UNAVAILABLE", "END" }
local DATA, HEARTBEAT, ACK, NAK, REPAIR, UNAVAILABLE, END = 1, 2, 3, 4, 5, 6, 7
local REASONS = { "not yet", "too old", "lost", "unknown session", "busy" }
local FINAL = { [2] = true, [3] = true, [4] = true }
local ROLES = { "server", "archive" }
local VERSION, HEADER, SEAL, KEYED = 2, 32, 24, 0x80
local MOST_RANGES, MOST_ENDPOINTS = 40, 32

local f = {
    magic = ProtoField.string("seqcast.magic", "Magic"),
    version = ProtoField.uint8("seqcast.version", "Version"),
    kind = ProtoField.uint8("seqcast.kind", "Kind", base.DEC, KINDS),
    stream = ProtoField.uint32("seqcast.stream", "Stream", base.HEX),
    session = ProtoField.uint32("seqcast.session", "Session"),
    sequence = ProtoField.uint32("seqcast.sequence", "Sequence"),
    last = ProtoField.uint32("seqcast.last", "Last"),
    time = ProtoField.absolute_time("seqcast.time", "Time", base.UTC),
    question = ProtoField.uint64("seqcast.question", "Question"),
    count = ProtoField.uint16("seqcast.count", "Count"),
    flags = ProtoField.uint16("seqcast.flags", "Flags", base.HEX),
    from_server = ProtoField.bool("seqcast.flags.from_server", "From the server", 16, nil, 1),
    ask_server = ProtoField.bool("seqcast.flags.ask_server", "The server is asked", 16, nil, 2),
    ask_archive = ProtoField.bool("seqcast.flags.ask_archive", "The archive is asked", 16, nil, 4),
    archived = ProtoField.bool("seqcast.flags.archived", "Kept until archived", 16, nil, 8),
    synced = ProtoField.bool("seqcast.flags.synced", "On stable storage", 16, nil, 16),
    unsure = ProtoField.bool("seqcast.flags.unsure", "End not known", 16, nil, 32),
    keyed = ProtoField.bool("seqcast.flags.keyed", "Sealed", 16, nil, KEYED),
    key = ProtoField.uint8("seqcast.key", "Key"),
    origin = ProtoField.uint32("seqcast.origin", "Origin", base.HEX),
    message = ProtoField.none("seqcast.message", "Message"),
    number = ProtoField.uint32("seqcast.message.number", "Number"),
    subject_len = ProtoField.uint8("seqcast.message.subject_len", "Subject length"),
    payload_len = ProtoField.uint16("seqcast.message.payload_len", "Payload length"),
    subject = ProtoField.string("seqcast.message.subject", "Subject"),
    payload = ProtoField.bytes("seqcast.message.payload", "Payload"),
    previous = ProtoField.uint32("seqcast.previous", "Previous session"),
    previous_last = ProtoField.uint32("seqcast.previous_last", "Last number of the previous session"),
    oldest = ProtoField.uint32("seqcast.oldest", "Oldest held"),
    acknowledged = ProtoField.uint32("seqcast.acknowledged", "Acknowledged below"),
    follower = ProtoField.uint32("seqcast.follower", "Session that follows"),
    endpoint = ProtoField.none("seqcast.endpoint", "Endpoint"),
    endpoint_ip = ProtoField.ipv4("seqcast.endpoint.ip", "Address"),
    endpoint_port = ProtoField.uint16("seqcast.endpoint.port", "Port"),
    endpoint_role = ProtoField.uint8("seqcast.endpoint.role", "Role", base.DEC, ROLES),
    endpoint_line = ProtoField.uint8("seqcast.endpoint.line", "Line", base.DEC, { [0] = "A", "B" }, 1),
    endpoint_same = ProtoField.bool("seqcast.endpoint.same", "Another way to the one before", 8, nil, 2),
    range = ProtoField.none("seqcast.range", "Range"),
    range_first = ProtoField.uint32("seqcast.range.first", "First"),
    range_last = ProtoField.uint32("seqcast.range.last", "Last"),
    reason = ProtoField.uint8("seqcast.reason", "Reason", base.DEC, REASONS),
    wait = ProtoField.uint16("seqcast.wait", "Ask again after (ms)"),
    seal_time = ProtoField.absolute_time("seqcast.seal.time", "Sealed at", base.UTC),
    seal_tag = ProtoField.bytes("seqcast.seal.tag", "Tag"),
}
seqcast.fields = f

local e = {
    malformed = ProtoExpert.new("seqcast.malformed", "Malformed frame", expert.group.MALFORMED, expert.severity.ERROR),
    version = ProtoExpert.new("seqcast.other_version", "Another version of the protocol", expert.group.PROTOCOL,
        expert.severity.WARN),
    gap = ProtoExpert.new("seqcast.gap", "Numbers are missing before this frame", expert.group.SEQUENCE,
        expert.severity.WARN),
    again = ProtoExpert.new("seqcast.again", "Numbers that were seen before", expert.group.SEQUENCE, expert.severity.NOTE),
    tail = ProtoExpert.new("seqcast.tail", "Numbers behind the last DATA seen exist", expert.group.SEQUENCE,
        expert.severity.WARN),
    asked = ProtoExpert.new("seqcast.asked", "Somebody misses messages", expert.group.SEQUENCE, expert.severity.NOTE),
    repaired = ProtoExpert.new("seqcast.repaired", "Messages are sent again", expert.group.SEQUENCE, expert.severity.NOTE),
    refused = ProtoExpert.new("seqcast.refused", "A question is refused for now", expert.group.RESPONSE_CODE,
        expert.severity.NOTE),
    final = ProtoExpert.new("seqcast.refused_for_good", "A question is refused for good", expert.group.RESPONSE_CODE,
        expert.severity.WARN),
    ended = ProtoExpert.new("seqcast.ended", "The session has ended", expert.group.SEQUENCE, expert.severity.CHAT),
    second = ProtoExpert.new("seqcast.second_server", "Two servers send on one session", expert.group.PROTOCOL,
        expert.severity.ERROR),
}
seqcast.experts = { e.malformed, e.version, e.gap, e.again, e.tail, e.asked, e.repaired, e.refused, e.final, e.ended,
    e.second }

-- What the live frames of each session and group show on the first pass, and what that says of a packet.
local streams, findings = {}, {}

function seqcast.init()
    streams, findings = {}, {}
end

local function note(pinfo, expertise, text)
    local list = findings[pinfo.number] or {}
    findings[pinfo.number] = list
    list[#list + 1] = { expertise, text }
end

-- Follows the numbers of what servers send to a group.
local function follow(pinfo, kind, stream, session, origin, first, next)
    local key = string.format("%d/%d/%s", stream, session, tostring(pinfo.dst))
    local seen = streams[key]
    if not seen then
        streams[key] = { next = next, origin = origin }
        return
    end
    if seen.origin ~= origin then
        note(pinfo, e.second, string.format("origin 0x%08x, before it 0x%08x", origin, seen.origin))
    end
    if kind == DATA then
        if first > seen.next then
            note(pinfo, e.gap, string.format("%d to %d are missing before this frame", seen.next, first - 1))
        elseif next <= seen.next then
            note(pinfo, e.again, "numbers below " .. seen.next .. " were seen before")
        end
    elseif next > seen.next then
        note(pinfo, e.tail, string.format("%d to %d exist and were not seen", seen.next, next - 1))
    end
    seen.next = math.max(seen.next, next)
end

local function nstime(value)
    return NSTime.new((value / 1000000000):tonumber(), (value % 1000000000):tonumber())
end

local function add_flags(tree, range)
    local flags = range:le_uint()
    local item = tree:add_le(f.flags, range)
    for _, name in ipairs { "from_server", "ask_server", "ask_archive", "archived", "synced", "unsure", "keyed" } do
        item:add_le(f[name], range)
    end
    if bit.band(flags, KEYED) ~= 0 then item:add(f.key, range(1, 1)) end
    return flags
end

-- Messages of DATA and REPAIR; where they end, or nothing when they do not fit.
local function add_block(tree, body, sequence, count)
    local at = 0
    for number = sequence, sequence + count - 1 do
        if at + 4 > body:len() then return nil end
        local payload, subject = body(at, 2):le_uint(), body(at + 2, 1):uint()
        local used = 4 + subject + payload
        local padded = used + (4 - used % 4) % 4
        if at + padded > body:len() then return nil end
        local item = tree:add(f.message, body(at, padded))
        item:set_text(string.format("Message %d, %d bytes", number, payload))
        item:add(f.number, body(at, padded), number):set_generated()
        item:add_le(f.payload_len, body(at, 2))
        item:add(f.subject_len, body(at + 2, 1))
        if subject > 0 then item:add(f.subject, body(at + 4, subject)) end
        if payload > 0 then item:add(f.payload, body(at + 4 + subject, payload)) end
        at = at + padded
    end
    return at
end

local function add_endpoints(tree, body, count)
    for i = 0, count - 1 do
        local range = body(8 * i, 8)
        local item = tree:add(f.endpoint, range)
        item:set_text(string.format("Endpoint %s:%d, %s", tostring(range(0, 4):ipv4()), range(4, 2):le_uint(),
            ROLES[range(6, 1):uint()] or "of no role"))
        item:add(f.endpoint_ip, range(0, 4))
        item:add_le(f.endpoint_port, range(4, 2))
        item:add(f.endpoint_role, range(6, 1))
        item:add(f.endpoint_line, range(7, 1))
        item:add(f.endpoint_same, range(7, 1))
    end
end

-- Ranges of ACK and NAK, refusals of UNAVAILABLE; in words, and how many numbers they are.
local function add_ranges(tree, body, count, size)
    local words, numbers = {}, 0
    for i = 0, count - 1 do
        local range = body(size * i, size)
        local first, last = range(0, 4):le_uint(), range(4, 4):le_uint()
        local text = first == last and tostring(first) or first .. "-" .. last
        local item = tree:add(f.range, range)
        item:add_le(f.range_first, range(0, 4))
        item:add_le(f.range_last, range(4, 4))
        if size == 12 then
            local reason = range(8, 1):uint()
            text = text .. " " .. (REASONS[reason] or "for reason " .. reason)
            item:add(f.reason, range(8, 1))
            item:add_le(f.wait, range(10, 2))
            item:add_proto_expert_info(FINAL[reason] and e.final or e.refused, "Refused: " .. text)
        end
        item:set_text("Range " .. text)
        words[#words + 1] = text
        numbers = numbers + math.max(last - first + 1, 0)
    end
    return table.concat(words, ", "), numbers
end

local function dissect(buffer, pinfo, tree)
    pinfo.cols.protocol = "Seqcast"
    local root = tree:add(seqcast, buffer())
    root:add(f.magic, buffer(0, 2))
    root:add(f.version, buffer(2, 1))
    local function malformed(text)
        root:add_proto_expert_info(e.malformed, text)
        pinfo.cols.info:set("Malformed: " .. text)
        return buffer:len()
    end
    if buffer(2, 1):uint() ~= VERSION then
        root:add_proto_expert_info(e.version, "version " .. buffer(2, 1):uint() .. "; this dissector knows " .. VERSION)
        pinfo.cols.info:set("Version " .. buffer(2, 1):uint())
        return buffer:len()
    end
    if buffer:len() < HEADER then return malformed("cut in its header") end

    local kind, stream, session = buffer(3, 1):uint(), buffer(4, 4):le_uint(), buffer(8, 4):le_uint()
    local sequence, count, origin = buffer(12, 4):le_uint(), buffer(24, 2):le_uint(), buffer(28, 4):le_uint()
    root:add(f.kind, buffer(3, 1))
    root:add_le(f.stream, buffer(4, 4))
    root:add_le(f.session, buffer(8, 4))
    root:add_le(f.sequence, buffer(12, 4))
    local time = buffer(16, 8):le_uint64()
    if kind == NAK or kind == UNAVAILABLE or kind == END then root:add_le(f.question, buffer(16, 8)) end
    if kind ~= UNAVAILABLE and kind ~= END then root:add(f.time, buffer(16, 8), nstime(time)) end
    root:add_le(f.count, buffer(24, 2))
    local flags = add_flags(root, buffer(26, 2))
    root:add_le(f.origin, buffer(28, 4))
    local name = KINDS[kind]
    if not name then return malformed("kind " .. kind) end

    local finish = buffer:len()
    -- A capture may hold the first bytes only.
    local cut = buffer:len() < buffer:reported_len()
    if bit.band(flags, KEYED) ~= 0 and not cut then
        finish = finish - SEAL
        if finish < HEADER then return malformed("cut in its seal") end
        root:add(f.seal_time, buffer(finish, 8), nstime(buffer(finish, 8):le_uint64()))
        root:add(f.seal_tag, buffer(finish + 8, 16))
    end
    local body = finish > HEADER and buffer(HEADER, finish - HEADER) or nil
    local length = finish - HEADER
    local from = bit.band(flags, 1) ~= 0 and "server" or "archive"
    local info

    if kind == DATA or kind == REPAIR then
        local last = sequence + count - 1
        root:add(f.last, buffer(24, 2), last):set_generated()
        info = count == 1 and tostring(sequence) or sequence .. "-" .. last
        if kind == REPAIR then
            info = info .. " from the " .. from
            root:add_proto_expert_info(e.repaired, "Repair of " .. info)
        elseif not pinfo.visited then
            follow(pinfo, kind, stream, session, origin, sequence, last + 1)
        end
        if not cut and (count == 0 or not body or add_block(root, body, sequence, count) ~= length) then
            return malformed("messages do not fill the frame")
        end
    elseif kind == HEARTBEAT then
        if length ~= 16 + 8 * count or count > MOST_ENDPOINTS then
            if not cut then return malformed("endpoints do not fill the frame") end
        else
            root:add_le(f.previous, body(0, 4))
            root:add_le(f.previous_last, body(4, 4))
            root:add_le(f.oldest, body(8, 4))
            root:add_le(f.acknowledged, body(12, 4))
            if count > 0 then add_endpoints(root, body(16), count) end
        end
        info = "next " .. sequence
        if not pinfo.visited then follow(pinfo, kind, stream, session, origin, sequence, sequence) end
    elseif kind == END then
        info = "session " .. session .. " ended with " .. (sequence - 1)
        if length == 8 then
            root:add_le(f.follower, body(0, 4))
            root:add_le(f.previous, body(4, 4))
        elseif not cut then
            return malformed("an END of " .. length .. " bytes")
        end
        -- One that answers goes to who has asked.
        if not pinfo.visited and time == UInt64(0) then
            follow(pinfo, kind, stream, session, origin, sequence, sequence)
        end
        root:add_proto_expert_info(e.ended, info)
    else
        local size = kind == UNAVAILABLE and 12 or 8
        if length ~= size * count or count > MOST_RANGES then
            if not cut then return malformed("ranges do not fill the frame") end
            info = "cut"
        else
            local words, numbers = "nothing", 0
            if count > 0 then words, numbers = add_ranges(root, body, count, size) end
            info = words
            if kind == NAK then
                local whom = bit.band(flags, 2) ~= 0 and "server" or "archive"
                info = words .. " of the " .. whom
                root:add_proto_expert_info(e.asked, "Asks the " .. whom .. " for " .. numbers .. ": " .. words)
            end
        end
    end
    for _, finding in ipairs(findings[pinfo.number] or {}) do
        root:add_proto_expert_info(finding[1], finding[2])
    end
    local sealed = bit.band(flags, KEYED) ~= 0 and ", sealed" or ""
    pinfo.cols.info:set(string.format("%s %s (0x%08x/%d%s)", name, info, stream, session, sealed))
    root:append_text(", " .. name .. " " .. info)
    return buffer:len()
end

local function is_ours(buffer)
    return buffer:len() >= 4 and buffer(0, 2):string() == "SQ"
end

function seqcast.dissector(buffer, pinfo, tree)
    if not is_ours(buffer) then return 0 end
    return dissect(buffer, pinfo, tree)
end

seqcast:register_heuristic("udp", function(buffer, pinfo, tree)
    if not is_ours(buffer) or buffer:len() < HEADER then return false end
    dissect(buffer, pinfo, tree)
    return true
end)
DissectorTable.get("udp.port"):add_for_decode_as(seqcast)
